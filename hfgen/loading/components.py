"""Loading of model folders as untrusted data: JSON and safetensors, checked before anything is built.

No name from a file is imported: names are looked up in the static table. A network is first built without
memory (torch's meta device), compared with the headers of its weight files, and only then filled.
"""

import inspect
import math
import types
from collections.abc import Collection, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hfgen.errors import ConfigError, UnsafeContentError
from hfgen.loading import transformers_models
from hfgen.loading.build import build, build_without_memory, fill
from hfgen.loading.files import read_json, saved_class, weight_files, weight_stem
from hfgen.loading.old_names import rename_old_attention_keys
from hfgen.registry import (
    IMPLIED_SETTINGS,
    MODULES,
    PIPELINE_SHIM,
    PIPELINES,
    SAVED_NAMES,
    SHIM,
    STOCK_ENTRIES,
    STOCK_SCHEDULERS,
    TRANSFORMERS_MODELS,
    TRANSFORMERS_TOKENIZERS,
    class_for,
)

INDEX = "model_index.json"

LARGEST = {
    "num_train_timesteps": 10**6, "sample_size": 2**12, "clip_sample_range": 10**6, "sample_max_value": 10**6,
}  # fmt: skip
"""Upper bounds of settings that determine the memory of a scheduler's tables and of the initial noise, and the values
of samples."""

OLD_SCHEDULER_KEYS = {"tensor_format": ("pt", "np"), "timestep_values": (None,), "predict_epsilon": (True,)}
"""Settings of early diffusers, and their values that today's diffusers always uses."""

EMA_SETTINGS = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
"""Settings that `EMAModel.save_pretrained` of diffusers writes beside those of a network."""


def read_index(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the hfgen pipeline that loads `folder` and the entries of its index: components and plain settings."""
    index = read_json(folder / INDEX)
    saved = index.get("_class_name")
    pipeline = _pipeline_name(folder / INDEX, saved)
    entries = {name: value for name, value in index.items() if not name.startswith("_")}
    # a pipeline of diffusers: components that hfgen's does not have, and settings
    if isinstance(saved, str):
        for name, value in STOCK_ENTRIES.get(saved, {}).items():
            given = entries.pop(name, value)
            if type(given) is not type(value) or (isinstance(value, list) and given != value):
                raise ConfigError(f"{folder / INDEX}: {name!r} must be {value!r}, got {given!r}, which hfgen lacks")
        entries |= IMPLIED_SETTINGS.get(saved, {})
    return pipeline, entries


def pipeline_class(folder: Path) -> Any:
    """Return the hfgen pipeline class that loads `folder`, from the static table."""
    name, _ = read_index(folder)
    return getattr(import_module(MODULES[name]), name)


def split_index(path: Path, cls: type, entries: dict[str, Any]) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """Return the components in `entries` as `{name: (library, class name)}`, and the settings of pipeline `cls`.

    A setting is an entry for which `cls` has a default; every other entry must be a pair of strings, or of nulls for a
    missing optional component. Raises ConfigError for any other entry, and for a setting of the wrong type.
    """
    # arguments of the pipeline
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    components, settings = {}, {}
    optional = getattr(cls, "_optional_components", [])
    # divide the entries
    for name, value in entries.items():
        if name in optional and value == [None, None]:
            continue
        if name not in optional and name in parameters and parameters[name].default is not inspect.Parameter.empty:
            _check_value(path, name, value, hints.get(name, Any))
            settings[name] = value
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
            components[name] = (value[0], value[1])
        else:
            raise ConfigError(f"{path}: {name!r} must be a pair of strings [library, class name], got {value!r}")
    return components, settings


def _pipeline_name(path: Path, saved: Any) -> str:
    """Return the name of the hfgen pipeline that loads a folder whose `_class_name` is `saved`."""
    # hfgen's own pipelines, by their shim
    if isinstance(saved, list):
        for ours in PIPELINES:
            if saved == [PIPELINE_SHIM, ours]:
                return ours
        raise UnsafeContentError(f"{path}: '_class_name' {saved!r} would run code from the model's folder")
    # pipelines of diffusers
    for ours, stock in PIPELINES.items():
        if isinstance(saved, str) and saved == stock:
            return ours
    supported = ", ".join(sorted(stock for stock in PIPELINES.values() if stock))
    raise ConfigError(
        f"{path}: '_class_name' is {saved!r}, which hfgen does not load. It loads the stock pipelines {supported} "
        f"and its own {', '.join(sorted(PIPELINES))}"
    )


def component_class(path: Path, name: str, library: str, saved: str) -> type:
    """Return the class in the table for component `name`, saved as `[library, saved]` in the file `path`."""
    # classes of other libraries
    if library == "diffusers" and saved in STOCK_SCHEDULERS:
        return getattr(import_module("diffusers"), saved)
    if library == "transformers" and saved in (*TRANSFORMERS_MODELS, *TRANSFORMERS_TOKENIZERS):
        return getattr(import_module("transformers"), saved)
    # hfgen's classes
    if ours := class_for(library, saved):
        return getattr(import_module(MODULES[ours]), ours)
    if library not in {SHIM, "transformers", *(stock for stock, _ in SAVED_NAMES.values())}:
        raise UnsafeContentError(f"{path}: {name!r} is from library {library!r}, which is not in hfgen's table")
    raise ConfigError(f"{path}: {name!r} is a {library}.{saved}, which hfgen does not have")


def component_folder(pipeline: Path, name: str) -> Path:
    """Return the folder of a component of a pipeline; in old flat folders that of the pipeline itself."""
    home = pipeline / name
    return home if home.is_dir() else pipeline


def load_component(
    folder: Path, name: str, cls: type, saved: str, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> Any:
    """Return component `name` of the pipeline in `folder`, in evaluation mode.

    `saved`: its `_class_name`. `dtype` of a network. Default: float32. Raises as `load_alone`.
    """
    home = component_folder(folder, name)
    if saved in TRANSFORMERS_TOKENIZERS:
        return transformers_models.load_tokenizer(home, cls)
    if saved in TRANSFORMERS_MODELS:
        return transformers_models.load_model(home, cls, dtype or torch.float32, variant)
    return load_alone(home, cls, (saved,), dtype=dtype, variant=variant)


def load_alone(
    home: Path,
    cls: type,
    names: Collection[str | None],
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Any:
    """Return the network, in evaluation mode, or the scheduler of class `cls` whose files are in the folder `home`.

    Its `_class_name` must be one of `names`. `dtype` of a network. Default: float32. Raises ConfigError for settings
    that `cls` does not have, CheckpointError for weights that do not fit, UnsafeContentError for pickles.
    """
    # settings
    path = home / cls.config_name  # type: ignore[attr-defined]
    config = read_json(path)
    saved, stem = saved_class(config), weight_stem(config)
    if saved not in names:
        raise ConfigError(f"{path}: '_class_name' is {saved!r}; expected {' or '.join(map(repr, names))}")
    rename = rename_old_attention_keys
    if saved != cls.__name__ and hasattr(cls, "own_settings"):
        config, rename = build(path, lambda: cls.own_settings(config)), cls.own_tensors  # type: ignore[attr-defined]
    settings = check_settings(path, cls, config)
    if issubclass(cls, SchedulerMixin):
        return build(path, lambda: cls.from_config(settings))  # type: ignore[attr-defined]
    # network, then its weights
    net = build_without_memory(path, lambda: cls(**settings))
    files = weight_files(home, stem, variant)
    return fill(path, net, lambda: cls(**settings), files, rename, dtype or torch.float32)


def check_settings(path: Path, cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in `config`, without private keys; ConfigError naming the field that `cls` does not have."""
    # arguments of the class
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    old = OLD_SCHEDULER_KEYS if issubclass(cls, SchedulerMixin) else {}
    settings = {}
    # keep the keys that it knows
    for key, value in config.items():
        averages = key in EMA_SETTINGS and key not in parameters
        if key.startswith("_") or averages or value in old.get(key, ()):
            continue
        if key not in parameters and key not in _keys_of_relatives(cls):
            raise ConfigError(f"{path}: unknown key {key!r}; {cls.__name__} has {', '.join(list(parameters)[1:])}")
        if key in parameters and value != parameters[key].default:
            _check_value(path, key, value, hints.get(key, Any))
        settings[key] = value
    return settings


@cache
def _keys_of_relatives(cls: type) -> set[str]:
    """Return the settings of related schedulers: schedulers keep those of the scheduler they were created from."""
    keys, stock = set[str](), import_module("diffusers")
    for name in getattr(cls, "_compatibles", []):
        if name in STOCK_SCHEDULERS or name == "DDPMScheduler":
            keys.update(inspect.signature(getattr(stock, name).__init__).parameters)
    return keys - {"self"}


def _check_value(path: Path, key: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless a JSON value fits the annotation `hint`, is finite, and keeps the bounds of `key`."""
    if not _fits(value, hint):
        raise ConfigError(f"{path}: {key!r} must be {_words(hint)}, got {value!r}")
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{path}: {key!r} must be finite, got {value!r}")
        if isinstance(number, float) and number > LARGEST.get(key, number):
            raise ConfigError(f"{path}: {key!r} must be at most {LARGEST[key]}, got {value!r}")
        whole = isinstance(number, int) and not _fits(0.5, hint) and not _fits([0.5], hint)
        if whole and not 0 <= number <= LARGEST.get(key, number):
            raise ConfigError(f"{path}: {key!r} must be in [0, {LARGEST.get(key, 'inf')}], got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value fits the annotation `hint`; any value fits a hint that is not JSON."""
    # one of several annotations
    kind, options = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return _fits_any(value, options)
    if kind is Literal:
        return type(value) in map(type, options)
    if kind in (list, tuple, Sequence):
        options = tuple(option for option in options if option is not ...) or (Any,)
        return isinstance(value, list) and all(_fits_any(item, options) for item in value)
    # a single type
    if kind in (bool, int, str, dict, types.NoneType):
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float)
    return hint is Any or isinstance(value, list)


def _fits_any(value: Any, hints: tuple[Any, ...]) -> bool:
    """Return whether a JSON value fits one of the annotations `hints`."""
    return any(_fits(value, hint) for hint in hints)


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
