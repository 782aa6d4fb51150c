"""Networks of transformers from their own folder, `config.json` and `model.safetensors`, without its `from_pretrained`.

The configuration's class is that of the network's class in the static table; a file names no code and no kernel to
fetch, and weights come only from the headers that were compared.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hfgen.errors import ConfigError
from hfgen.safe_build import build, build_without_memory, fill
from hfgen.safe_files import TRANSFORMERS_WEIGHTS, read_json, read_weights, shape_of, weight_files

CONFIG = "config.json"
NOTES = frozenset({
    "architectures", "dtype", "model_type", "output_attentions", "output_hidden_states", "return_dict", "torch_dtype",
    "transformers_version",
})
"""What transformers notes in a configuration beside the network's settings; hfgen checks it or leaves it out."""

PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
MAX_NUMBER = 2**24
MAX_REPEATS = 2**10
"""Upper bounds of whole numbers in a configuration; and of how many layers, blocks or entries of a list it counts."""

REPEATS = ("layer", "depth", "block", "repeat", "stage", "heads", "window")


def load_model(folder: Path, cls: Any, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Return the network of class `cls` saved in `folder`, in evaluation mode and in `dtype`.

    Raises ConfigError for settings that `cls` cannot have, CheckpointError for weights that are not its own and
    UnsafeContentError for pickles.
    """
    path = folder / CONFIG
    settings = check_model_settings(path, cls, read_json(path))

    def make() -> Any:
        return cls(cls.config_class.from_dict(dict(settings)))

    build(path, lambda: cls.config_class.from_dict(dict(settings)))  # wrong types, before any layer
    net = build_without_memory(path, make)
    files = weight_files(folder, TRANSFORMERS_WEIGHTS, variant)
    return fill(path, net, make, files, _renamer(net, read_weights(files, shape_of).keys()), dtype)


def check_model_settings(path: Path, cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in `config` that decide what is built; ConfigError names one that `cls` cannot have."""
    for key, wanted in (("architectures", [cls.__name__]), ("model_type", cls.config_class.model_type)):
        if config.get(key) != wanted:
            raise ConfigError(f"{path}: {key!r} must be {wanted!r} for a {cls.__name__}, found {config.get(key)!r}")
    settings = {}
    for key, value in config.items():
        if key not in known_keys(cls) and not key.startswith("_"):
            raise ConfigError(f"{path}: unknown key {key!r}; {cls.config_class.__name__} has "
                              f"{', '.join(sorted(_settings(cls)))}")
        if key in _settings(cls):
            _check_value(path, key, value)
            settings[key] = value
    return settings


@cache
def _settings(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(cls.config_class) if not field.name.startswith("_")) - NOTES


@cache
def known_keys(cls: Any) -> frozenset[str]:
    """Return the keys of a saved configuration: settings, notes, and what is computed from the settings again."""
    return _settings(cls) | NOTES | cls.config_class().to_dict().keys()


def _check_value(path: Path, key: str, value: Any) -> None:
    """Raise ConfigError for what the configuration's class does not check, and for numbers that it would choke on."""
    if key in ("id2label", "label2id") and not isinstance(value, dict | None):
        raise ConfigError(f"{path}: {key!r} must be an object, found {value!r}")
    if key == "problem_type" and value not in PROBLEMS:
        raise ConfigError(f"{path}: {key!r} must be one of {PROBLEMS}, found {value!r}")
    numbers = list(_numbers(value))
    largest = MAX_REPEATS if any(word in key for word in REPEATS) else MAX_NUMBER
    total = sum(abs(number) for number in numbers if isinstance(number, int))
    if not all(map(math.isfinite, numbers)) or total > largest or len(numbers) > MAX_REPEATS:
        raise ConfigError(f"{path}: {key!r} must be finite, at most {largest} in all, and a list of at most "
                          f"{MAX_REPEATS}; found {str(value)[:200]}")


def _numbers(value: Any) -> Iterator[int | float]:
    """Return an iterator over the numbers in a JSON value and in the lists in it."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _renamer(net: Any, stored: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what turns keys of transformers' files into those of `net`, which its newer releases call otherwise.

    transformers renames on the way out, and a renamed tensor is still the same object: that tells which is which.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = net.state_dict()
    if stored <= state.keys():
        return dict
    owner = {id(tensor): key for key, tensor in state.items()}
    names = {old: owner[id(tensor)] for old, tensor in revert_weight_conversion(net, dict(state)).items()}
    return lambda found: {names.get(key, key): value for key, value in found.items()}
