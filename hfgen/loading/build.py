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
            raise ConfigError(f"{self.path}: asks for a network of more than {MAX_TORCH_CALLS} operations to build")
        kwargs = kwargs or {}
        starts = getattr(func, "__module__", None) == "torch.nn.init"                   # weights come from the file
        return kwargs["tensor"] if starts else func(*args, **kwargs)


def build(path: Path, make: Callable[[], Any]) -> Any:
    """Return `make()`; any error of a constructor becomes a ConfigError that names the file."""
    try:
        return make()
    except HfgenError as error:
        raise type(error)(error if str(path) in str(error) else f"{path}: {error}") from error
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

    `rename`: maps keys of the files to keys of the network. Buffers that are computed, not stored, are taken from
    `make()`. Raises ConfigError or CheckpointError before any allocation if the files do not fit the network.
    """
    tied = getattr(net, "all_tied_weights_keys", {})                 # second names of tensors, stored once
    _compare(path, files, net, rename(read_weights(files, shape_of)), tied)
    tensors = rename(read_weights(files, tensor_of))
    net.load_state_dict({key: _cast(tensor, dtype) for key, tensor in tensors.items()}, strict=not tied, assign=True)
    if tied:
        net.tie_weights()
    if any(buffer.is_meta for buffer in net.buffers()):
        _compute_tables(path, net, make, dtype)
    return net.eval()


def _compute_tables(path: Path, net: Any, make: Callable[[], Any], dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]), _MetaBuild(path):
        computed = dict(make().named_buffers())
    for name, buffer in list(net.named_buffers()):
        if buffer.is_meta:
            owner, _, key = name.rpartition(".")
            setattr(net.get_submodule(owner), key, _cast(computed[name], dtype))


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy in torch's own memory: the alignment of a mapped file would change the last bit of results."""
    return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()


def _compare(path: Path, files: list[Path], net: Any, held: dict[str, Any], tied: dict[str, str]) -> None:
    """Raise unless `held`, the shapes in the files' headers, equal the shapes of the tensors of `net`."""
    wanted = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items() if key not in tied}
    computed = [tuple(buffer.shape) for name, buffer in net.named_buffers() if name not in wanted]
    asked, stored = sum(map(math.prod, [*wanted.values(), *computed])), sum(map(math.prod, held.values()))
    if asked > MAX_PARAMETERS or asked > 10 * stored:
        raise ConfigError(
            f"{path}: asks for a network of {asked} parameters; {files[0].parent} holds {stored}, "
            f"and hfgen loads at most {MAX_PARAMETERS}"
        )
    problems = {
        "missing": sorted(wanted.keys() - held.keys()),
        "unexpected": sorted(held.keys() - wanted.keys()),
        "misshaped": [
            f"{key} {held[key]} instead of {shape}" for key, shape in wanted.items() if held.get(key, shape) != shape
        ],
    }
    if any(problems.values()):
        lists = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise CheckpointError(f"{files[0].parent}: the weights do not belong to {path.name}. {lists}")
