"""Loading of networks of transformers from `config.json` and `model.safetensors`, without its `from_pretrained`.

The network's class comes from `hfgen.registry` and determines the class of its configuration. No code and no kernel
that a file names is fetched. Weights are loaded only after their headers were compared with the network.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hfgen.errors import ConfigError
from hfgen.loading.build import build, build_without_memory, fill
from hfgen.loading.files import (
    MAX_JSON_BYTES,
    TRANSFORMERS_WEIGHTS,
    read_json,
    read_weights,
    require_file,
    shape_of,
    weight_files,
)

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
MAX_TOKENS = 2**20
TEXT_MODEL = "clip_text_model"
NOTES = frozenset({
    "architectures", "dtype", "model_type", "output_attentions", "output_hidden_states", "return_dict", "torch_dtype",
    "transformers_version",
})
"""Keys of a configuration that are not settings of the network; hfgen checks or ignores them."""

PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
MAX_NUMBER = 2**24
MAX_REPEATS = 2**10
"""Upper bounds: of integers in a configuration; of its layers, blocks and list entries."""

REPEATS = ("layer", "depth", "block", "repeat", "stage", "heads", "window")


def load_model(folder: Path, cls: Any, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Return the network of class `cls` saved in `folder`, in evaluation mode and in `dtype`.

    Raises ConfigError for settings that `cls` does not have, CheckpointError for weights that do not fit and
    UnsafeContentError for pickles.
    """
    path = folder / CONFIG
    settings = check_model_settings(path, cls, read_json(path))
    return _filled(path, cls, settings, weight_files(folder, TRANSFORMERS_WEIGHTS, variant), dtype)


def load_half(folder: Path, cls: Any, dtype: torch.dtype) -> Any:
    """Return the text or image network, of class `cls`, of the complete CLIP model saved in `folder`.

    Old files list settings of any model for each half: only the settings and the weights of `cls` are read. Raises as
    `load_model`.
    """
    # settings of the half
    path, key = folder / CONFIG, cls.config_class.base_config_key
    config = read_json(path)
    half = config.get(key)
    if config.get("architectures") != ["CLIPModel"] or not isinstance(half, dict):
        raise ConfigError(f"{path}: 'architectures' must be ['CLIPModel'] and {key!r} an object, got "
                          f"{config.get('architectures')!r} and {type(half).__name__}")
    # those of `cls`, as a model of its own
    given = {name: value for name, value in half.items() if name in _settings(cls)}
    if "projection_dim" in config:
        given["projection_dim"] = config["projection_dim"]
    given |= {"architectures": [cls.__name__], "model_type": cls.config_class.model_type}
    # weights
    files = weight_files(folder, TRANSFORMERS_WEIGHTS)
    return _filled(path, cls, check_model_settings(path, cls, given), files, dtype, own=True)


def _filled(
    path: Path, cls: Any, settings: dict[str, Any], files: list[Path], dtype: torch.dtype, own: bool = False
) -> Any:
    """Return the network with checked settings and the weights in `files`; `own`: other weights there are ignored."""

    def make() -> Any:
        return cls(cls.config_class.from_dict(dict(settings)))

    # wrong types are refused before any layer is built
    build(path, lambda: cls.config_class.from_dict(dict(settings)))
    net = build_without_memory(path, make)
    # keys of the files, renamed to those of the network
    rename, keys = _renamer(net, read_weights(files, shape_of).keys()), net.state_dict().keys()

    def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in rename(tensors).items() if key in keys or not own}

    return fill(path, net, make, files, renamed, dtype)


def load_tokenizer(folder: Path, cls: Any) -> Any:
    """Return the byte-pair tokenizer of class `cls` saved in `folder`, from its vocabulary and merges.

    They are in `tokenizer.json`, or in `vocab.json` and `merges.txt`. Raises ConfigError for files of another form.
    """
    where = folder / TOKENIZER_CONFIG
    config = read_json(where)
    # vocabulary and merges
    vocabulary, merges, path = _tables(folder)
    numbers, count = vocabulary.values(), len(vocabulary)
    if not all(type(n) is int for n in numbers) or {*numbers} != {*range(count)} or not 0 < count <= MAX_TOKENS:
        raise ConfigError(f"{path}: 'vocab' must number at most {MAX_TOKENS} tokens from 0 on")
    # special tokens
    special = {key: _text(config[key]) for key in SPECIAL_TOKENS if key in config}
    for key, token in special.items():
        if not isinstance(token, str) or token not in vocabulary:
            raise ConfigError(f"{where}: {key!r} must be a token of the vocabulary, got {token!r}")
    # length of a text
    length = config.get("model_max_length")
    if type(length) is not int or not 2 < length <= MAX_NUMBER:
        raise ConfigError(f"{where}: 'model_max_length' must be in [3, {MAX_NUMBER}], got {length!r}")
    return build(path, lambda: cls(vocab=vocabulary, merges=merges, model_max_length=length, **special))


def _tables(folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]], Path]:
    """Return the vocabulary, the merges as pairs of tokens, and the file of the vocabulary."""
    # both in one file, or in a file each
    path = folder / TOKENIZER
    if path.is_file():
        model = read_json(path).get("model")
        if not isinstance(model, dict):
            raise ConfigError(f"{path}: 'model' must be an object, got {model!r:.80}")
        vocabulary, merges = model.get("vocab"), model.get("merges")
    else:
        path = folder / "vocab.json"
        vocabulary, lines = read_json(path), read_lines(folder / "merges.txt")
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    # their types
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ConfigError(f"{path}: 'vocab' must be an object and 'merges' a list")
    return vocabulary, [_pair(path, merge) for merge in merges], path


def _pair(path: Path, merge: Any) -> tuple[str, str]:
    """Return the two tokens of a merge, given as "a b" or as a list."""
    tokens = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(tokens, list) or len(tokens) != 2 or not all(isinstance(token, str) for token in tokens):
        raise ConfigError(f"{path}: each of 'merges' must be two tokens, got {merge!r:.80}")
    return tokens[0], tokens[1]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; ConfigError if it is missing, too large or not text."""
    try:
        require_file(path)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: larger than the {MAX_JSON_BYTES} bytes that are read")
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); a tokenizer needs this file") from error


def _text(token: Any) -> Any:
    """Return a special token as text; `token` is the text, or an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def check_model_settings(path: Path, cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the network in `config`; ConfigError names one that `cls` does not have."""
    # class and kind of the model
    for key, expected in (("architectures", [cls.__name__]), ("model_type", cls.config_class.model_type)):
        if config.get(key) != expected:
            raise ConfigError(f"{path}: {key!r} must be {expected!r} for a {cls.__name__}, got {config.get(key)!r}")
    # known keys
    settings = {}
    for key, value in config.items():
        if key not in known_keys(cls) and not key.startswith("_"):
            raise ConfigError(f"{path}: unknown key {key!r}; {cls.config_class.__name__} has "
                              f"{', '.join(sorted(_settings(cls)))}")
        if key in _settings(cls):
            _check_value(path, key, value)
            settings[key] = value
    # the token that ends a text, whose features stand for the whole text
    end = settings.get("eos_token_id", 0)
    if cls.config_class.model_type == TEXT_MODEL and (type(end) is not int or end < 0):
        raise ConfigError(f"{path}: 'eos_token_id' must be an int >= 0, got {end!r}")
    return settings


@cache
def _settings(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(cls.config_class) if not field.name.startswith("_")) - NOTES


@cache
def known_keys(cls: Any) -> frozenset[str]:
    """Return the keys of a saved configuration: settings, notes, and values computed from the settings."""
    return _settings(cls) | NOTES | cls.config_class().to_dict().keys()


def _check_value(path: Path, key: str, value: Any) -> None:
    """Raise ConfigError for values that the configuration's class does not check, and for numbers out of bounds."""
    if key in ("id2label", "label2id") and not isinstance(value, dict | None):
        raise ConfigError(f"{path}: {key!r} must be an object, got {value!r}")
    if key == "problem_type" and value not in PROBLEMS:
        raise ConfigError(f"{path}: {key!r} must be one of {PROBLEMS}, got {value!r}")
    # bounds of the numbers
    numbers = list(_numbers(value))
    largest = MAX_REPEATS if any(word in key for word in REPEATS) else MAX_NUMBER
    total = sum(abs(number) for number in numbers if isinstance(number, int))
    if total > largest or len(numbers) > MAX_REPEATS or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{path}: {key!r} must be finite, at most {largest} in all, and a list of at most "
                          f"{MAX_REPEATS}; got {str(value)[:200]}")


def _numbers(value: Any) -> Iterator[int | float]:
    """Return an iterator over the numbers in a JSON value and in the lists in it."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _renamer(net: Any, stored: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that maps the keys in transformers' files to the keys of `net`.

    transformers renames keys when it saves, and keeps the tensor objects, which identify the pairs. The halves of CLIP
    are saved with the prefix of the complete model (`text_model.`). Old files store buffers that are computed today.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = net.state_dict()
    if stored <= state.keys():
        return dict
    # keys in files by keys of the network
    owner = {id(tensor): key for key, tensor in state.items()}
    names = {old: owner[id(tensor)] for old, tensor in revert_weight_conversion(net, dict(state)).items()}
    computed = {name for name, _ in net.named_buffers()} - state.keys()
    # the prefix of a half of CLIP
    if half := net.config_class.base_config_key:
        prefix = half.removesuffix("config") + "model."
        names |= {prefix + key: key for key in (*state, *computed) if not key.startswith(prefix)}
    pairs = {key: names.get(key, key) for key in stored}

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {pairs[key]: value for key, value in tensors.items() if pairs[key] not in computed}

    return rename
