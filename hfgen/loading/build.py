"""Building of networks from untrusted settings: on the meta device, compared with the files' headers, then filled."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hfgen.errors import CheckpointError, ConfigError, HfgenError
from hfgen.loading.files import read_weights, shape_of, tensor_of

MAX_PARAMETERS = 10**10
MAX_TORCH_CALLS = 10_000
"""Maximal number of torch calls that build a network: four times those of the largest U-Net in use; 0.3 s."""


class _MetaBuild(TorchFunctionMode):
    """Mode that builds a network without initial values, and stops a configuration that would never finish."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.calls = path, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls > MAX_TORCH_CALLS:
            raise ConfigError(f"{self.path}: a network of more than {MAX_TORCH_CALLS} operations to build")
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]                                                     # its weights come from the file
        return func(*args, **kwargs)


def build(path: Path, make: Callable[[], Any]) -> Any:
    """Return `make()`; an error of a constructor becomes a ConfigError that names the file `path`."""
    try:
        return make()
    except HfgenError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: these settings cannot be built: {type(error).__name__}: {error}") from error


def build_without_memory(path: Path, make: Callable[[], Any]) -> Any:
    """Return the network `make()` on torch's meta device: shapes without memory, for any settings in `path`."""
    with torch.device("meta"), _MetaBuild(path):
        return build(path, make)


def fill(
    path: Path,
    net: Any,
    make: Callable[[], Any],
    files: list[Path],
    rename: Callable[[dict[str, Any]], dict[str, Any]],
    dtype: torch.dtype,
) -> Any:
    """Return `net`, built without memory, with the tensors of `files` and in evaluation mode.

    `rename`: maps keys of the files to keys of the network. Modules in `_keep_in_fp32_modules` stay float32. Buffers
    that are computed, not stored, are taken from `make()`. Raises ConfigError or CheckpointError before any allocation
    if the files do not fit the network.
    """
    # compare the headers
    tied = getattr(net, "all_tied_weights_keys", {})                 # second names of tensors, stored once
    _compare(path, files, net, rename(read_weights(files, shape_of)), tied)
    # read the tensors
    tensors = rename(read_weights(files, tensor_of))
    _check_values(files, net, tensors)
    kept = getattr(net, "_keep_in_fp32_modules", None) or ()
    precise = {kept} if isinstance(kept, str) else set(kept)
    cast = {key: _cast(x, torch.float32 if precise & set(key.split(".")) else dtype) for key, x in tensors.items()}
    net.load_state_dict(cast, strict=not tied, assign=True)
    if tied:
        net.tie_weights()
    # compute the buffers that are not stored
    if any(buffer.is_meta for buffer in net.buffers()):
        _compute_tables(path, net, make, dtype)
    return net.eval()


def _compute_tables(path: Path, net: Any, make: Callable[[], Any], dtype: torch.dtype) -> None:
    """Replace the buffers of `net` that are still on the meta device by those of `make()`."""
    with torch.random.fork_rng(devices=[]), _MetaBuild(path):
        computed = dict(build(path, make).named_buffers())
    for name, buffer in list(net.named_buffers()):
        if buffer.is_meta:
            owner, _, key = name.rpartition(".")
            setattr(net.get_submodule(owner), key, _cast(computed[name], dtype))


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy in torch's own memory, floats in `dtype`.

    Tensors of a mapped file have another alignment, which changes the last bit of results.
    """
    if tensor.is_floating_point():
        return tensor.to(dtype, copy=True)
    return tensor.clone()


def _compare(path: Path, files: list[Path], net: Any, stored: dict[str, Any], tied: dict[str, str]) -> None:
    """Raise unless `stored`, the shapes in the files' headers, equal the shapes of the tensors of `net`."""
    expected = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items() if key not in tied}
    _check_size(path, files, net, expected, stored)
    # keys and shapes
    missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    misshaped = []
    for key, shape in expected.items():
        if stored.get(key, shape) != shape:
            misshaped.append(f"{key} {stored[key]} instead of {shape}")
    # the problems, if there are any
    problems = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped}
    if any(problems.values()):
        lists = "; ".join(f"{problem}: {', '.join(keys)}" for problem, keys in problems.items() if keys)
        raise CheckpointError(f"{files[0].parent}: the weights do not belong to {path.name}. {lists}")


def _check_values(files: list[Path], net: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError, naming them, for weights that are no floats where `net` has floats, or vice versa, and for
    trained ones that are NaN or infinite."""
    # compare the kinds of numbers
    due = {key: tensor.is_floating_point() for key, tensor in net.state_dict().items()}
    other = [key for key, tensor in tensors.items() if due.get(key, True) != tensor.is_floating_point()]
    if other:
        raise CheckpointError(f"{files[0].parent}: stored as numbers of another kind: {', '.join(sorted(other))}")
    # check the values
    trained = {key for key, _ in net.named_parameters()}
    broken = [key for key in trained & tensors.keys() if not tensors[key].isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{files[0].parent}: weights that are NaN or infinite: {', '.join(sorted(broken))}. The model was saved "
            "after its training had failed; take an earlier checkpoint"
        )


def _check_size(
    path: Path, files: list[Path], net: Any, expected: dict[str, tuple[int, ...]], stored: dict[str, Any]
) -> None:
    """Raise ConfigError if `net`, its computed buffers included, is too large, or much larger than its files."""
    computed = [tuple(buffer.shape) for name, buffer in net.named_buffers() if name not in expected]
    size, stored_size = sum(map(math.prod, [*expected.values(), *computed])), sum(map(math.prod, stored.values()))
    if size > MAX_PARAMETERS or size > 10 * stored_size:
        raise ConfigError(
            f"{path}: a network of {size} parameters; {files[0].parent} holds {stored_size}, "
            f"and hfgen loads at most {MAX_PARAMETERS}"
        )
