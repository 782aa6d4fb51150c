"""Model folders read as what they are, untrusted data: JSON and safetensors, checked before anything is built.

Nothing named in a file is ever imported: names are looked up in the static table. A network is first built without
memory (torch's meta device), compared with the headers of its weight files, and only then filled.
"""

import inspect
import json
import math
import re
import types
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from hfgen.errors import CheckpointError, ConfigError, HfgenError, UnsafeContentError
from hfgen.models.old_names import rename_old_attention_keys
from hfgen.registry import MODULES, PIPELINE_SHIM, PIPELINES, SAVED_NAMES, SHIM, STOCK_SCHEDULERS, class_for

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
MAX_JSON_BYTES = 16 * 2**20
MAX_PARAMETERS = 10**10
MAX_TORCH_CALLS = 10_000
"""Building a network may call torch this often: four times what the largest U-Net in use needs; 0.3 s."""

LARGEST = {"num_train_timesteps": 10**6, "sample_size": 2**14}
"""Upper bounds of settings that decide how much memory a scheduler's tables or the first noise take."""

OLD_SCHEDULER_KEYS = {"tensor_format": ("pt", "np"), "timestep_values": (None,), "predict_epsilon": (True,)}
"""Settings of early diffusers that say what is now the only way, and the values that say so."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file `path`; ConfigError when it is missing, too large or anything else."""
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: {size} bytes of JSON; at most {MAX_JSON_BYTES} are read")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a model folder needs this file") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); save or download the model again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(found).__name__}")
    for key in ("auto_map", "custom_pipeline"):
        if key in found:
            raise UnsafeContentError(f"{path}: {key!r} asks to run code from the model's folder; hfgen never does")
    return found


def read_index(folder: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the hfgen pipeline that loads `folder` and its components as `{name: (library, class name)}`."""
    path = folder / INDEX
    index = read_json(path)
    pipeline = _pipeline_name(path, index.get("_class_name"))
    components = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
            raise ConfigError(f"{path}: {name!r} must be a pair of strings [library, class name], found {value!r}")
        components[name] = (value[0], value[1])
    return pipeline, components


def _pipeline_name(path: Path, found: Any) -> str:
    if isinstance(found, list):
        if len(found) == 2 and found[0] == PIPELINE_SHIM and found[1] in PIPELINES:
            return str(found[1])
        raise UnsafeContentError(f"{path}: '_class_name' {found!r} asks to run code from the model's folder")
    for ours, stock in PIPELINES.items():
        if isinstance(found, str) and found == stock:
            return ours
    supported = ", ".join(sorted(stock for stock in PIPELINES.values() if stock))
    raise ConfigError(
        f"{path}: '_class_name' is {found!r}, which hfgen does not load. It loads the stock pipelines {supported} "
        f"and its own {', '.join(sorted(PIPELINES))}"
    )


def component_class(path: Path, name: str, library: str, saved: str) -> type:
    """Return the class that the table has for component `name`, saved as `[library, saved]` in the file `path`."""
    if library == "diffusers" and saved in STOCK_SCHEDULERS:
        return getattr(import_module("diffusers"), saved)
    if ours := class_for(library, saved):
        return getattr(import_module(MODULES[ours]), ours)
    if library not in {SHIM, *(stock for stock, _ in SAVED_NAMES.values())}:
        raise UnsafeContentError(f"{path}: {name!r} is from library {library!r}, which is not in hfgen's table")
    raise ConfigError(f"{path}: {name!r} is a {library}.{saved}, which hfgen does not have")


def load_component(
    folder: Path, name: str, cls: type, saved: str, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> Any:
    """Return component `name` of the pipeline in `folder`, in evaluation mode; `saved` is its `_class_name`.

    Old flat folders keep a component's files beside `model_index.json`. `dtype` defaults to float32.
    """
    home = folder / name if (folder / name).is_dir() else folder
    path = home / cls.config_name  # type: ignore[attr-defined]
    config = read_json(path)
    if config.get("_class_name") != saved:
        raise ConfigError(f"{path}: '_class_name' is {config.get('_class_name')!r}, {INDEX} says {saved!r}")
    settings = check_settings(path, cls, config)
    if issubclass(cls, SchedulerMixin):
        return _build(path, lambda: cls.from_config(settings))  # type: ignore[attr-defined]
    return _load_network(path, cls, settings, dtype or torch.float32, variant)


def check_settings(path: Path, cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in `config`, private keys dropped; ConfigError naming the field that `cls` cannot have."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    old = OLD_SCHEDULER_KEYS if issubclass(cls, SchedulerMixin) else {}
    settings = {}
    for key, value in config.items():
        if key.startswith("_") or value in old.get(key, ()):
            continue
        if key not in parameters and key not in _keys_of_relatives(cls):
            raise ConfigError(f"{path}: unknown key {key!r}; {cls.__name__} has {', '.join(list(parameters)[1:])}")
        default = parameters[key].default if key in parameters else None
        if value != default and key in parameters:
            _check_value(path, key, value, hints.get(key, Any))
        settings[key] = value
    return settings


@cache
def _keys_of_relatives(cls: type) -> set[str]:
    """Schedulers pass on the settings of the scheduler that they were made from; they use them not, but keep them."""
    relatives = [c for c in getattr(cls, "_compatibles", []) if c in STOCK_SCHEDULERS or c == "DDPMScheduler"]
    stock = import_module("diffusers")
    return {key for c in relatives for key in inspect.signature(getattr(stock, c).__init__).parameters} - {"self"}


def _check_value(path: Path, key: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        raise ConfigError(f"{path}: {key!r} must be {_words(hint)}, found {value!r}")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{path}: {key!r} must be finite, found {value!r}")
        whole = isinstance(number, int) and not _fits(0.5, hint) and not _fits([0.5], hint)
        if whole and not 0 <= number <= LARGEST.get(key, number):
            raise ConfigError(f"{path}: {key!r} must be in [0, {LARGEST.get(key, 'inf')}], found {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value can stand where a constructor wants `hint`; hints that are no JSON take anything."""
    kind, options = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if kind is Literal:
        return type(value) in {type(option) for option in options}
    if kind in (list, tuple, Sequence):
        options = tuple(option for option in options if option is not ...) or (Any,)
        return isinstance(value, list) and all(any(_fits(item, option) for option in options) for item in value)
    if kind in (bool, int, str, types.NoneType):
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float)
    return hint is Any or isinstance(value, list)


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


class _MetaBuild(TorchFunctionMode):
    """Builds a network without starting values, and stops a configuration that would go on building for ever."""

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


def _build(path: Path, make: Any) -> Any:
    """Return `make()`, with whatever a constructor says against its settings as a ConfigError that names the file."""
    try:
        return make()
    except HfgenError as error:
        raise type(error)(error if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: these settings cannot be built: {type(error).__name__}: {error}") from error


def _load_network(path: Path, cls: type, settings: dict[str, Any], dtype: torch.dtype, variant: str | None) -> Any:
    with torch.device("meta"), _MetaBuild(path):
        net = _build(path, lambda: cls(**settings))
    files = weight_files(path.parent, variant)
    _compare(path, files, net)
    tensors = rename_old_attention_keys(_read(files, _tensor_of))
    net.load_state_dict({key: _cast(tensor, dtype) for key, tensor in tensors.items()}, assign=True)
    if any(buffer.is_meta for buffer in net.buffers()):              # tables that are computed, not stored
        computed = dict(cls(**settings).named_buffers())
        for name, buffer in list(net.named_buffers()):
            if buffer.is_meta:
                owner, _, key = name.rpartition(".")
                setattr(net.get_submodule(owner), key, _cast(computed[name], dtype))
    return net.eval()


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files of the network in `folder`: its shards in order, or the one file."""
    dotted = f".{variant}" if variant else ""
    index = folder / f"{WEIGHTS}.safetensors.index{dotted}.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ConfigError(f"{index}: 'weight_map' must be an object {{key: file}}, found {shards!r}")
        pattern = re.compile(rf"{re.escape(WEIGHTS + dotted)}-\d{{5}}-of-\d{{5}}\.safetensors")
        for shard in shards.values():
            if not (isinstance(shard, str) and pattern.fullmatch(shard)):
                raise UnsafeContentError(f"{index}: {shard!r} is not the name of a shard, {WEIGHTS}-00001-of-00002...")
        return [folder / shard for shard in sorted(set(shards.values()))]
    single = folder / f"{WEIGHTS}{dotted}.safetensors"
    if not single.is_file():
        refuse_pickles(folder)
        raise CheckpointError(f"{single}: no such file; found {sorted(p.name for p in folder.iterdir())}")
    return [single]


def refuse_pickles(folder: Path) -> None:
    """Raise UnsafeContentError if `folder` holds pickled weights and no safetensors."""
    names = sorted(p.name for p in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UnsafeContentError(
            f"{folder}: the weights are pickled ({', '.join(pickles)}), and opening a pickle runs code. Convert them "
            "to safetensors where you trust their origin, then load again"
        )


def _compare(path: Path, files: list[Path], net: ModelMixin) -> None:
    """Raise unless the files' headers name exactly the tensors of `net`, in its shapes."""
    held: dict[str, Any] = rename_old_attention_keys(_read(files, _shape_of))
    wanted = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    asked, stored = (sum(map(math.prod, shapes.values())) for shapes in (wanted, held))
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


def _shape_of(handle: Any, key: str) -> tuple[int, ...]:
    return tuple(handle.get_slice(key).get_shape())


def _tensor_of(handle: Any, key: str) -> torch.Tensor:
    return handle.get_tensor(key)


def _read(files: list[Path], what: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Return `{key: what(handle, key)}` over the tensors of safetensors files; CheckpointError names a broken file."""
    found: dict[str, Any] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                found |= {key: what(handle, key) for key in handle.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as safetensors ({error}); cut short or corrupt, save or download it again"
            ) from error
    return found
