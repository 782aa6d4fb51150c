"""The files of a model folder, read as untrusted data: JSON within bounds, safetensors and never a pickle."""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hfgen.errors import CheckpointError, ConfigError, UnsafeContentError

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"
"""Stems of the weight files of a network, before `.safetensors`."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
MAX_JSON_BYTES = 16 * 2**20


def require_file(path: Path) -> None:
    """Raise OSError for anything but a regular file: opening a pipe or a device may never end."""
    path.stat()
    if not path.is_file():
        raise OSError(errno.EINVAL, "no regular file")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file `path`; ConfigError if the file is missing, too large or not an object."""
    # read the object
    try:
        require_file(path)
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: {size} bytes of JSON; at most {MAX_JSON_BYTES} are read")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a model folder needs this file") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); save or download the model again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    # refuse code
    for key in ("auto_map", "custom_pipeline"):
        if key in content:
            raise UnsafeContentError(f"{path}: {key!r} would run code from the model's folder; hfgen never does that")
    return content


def saved_class(config: dict[str, Any]) -> Any:
    """Return the name of the class in a component's settings, those of diffusers or of transformers; None if none."""
    names = config.get("architectures")
    if "_class_name" not in config and isinstance(names, list) and len(names) == 1:
        return names[0]
    return config.get("_class_name")


def weight_stem(config: dict[str, Any]) -> str:
    """Return the stem of the weight files beside the settings of a network: diffusers' or transformers'."""
    return DIFFUSERS_WEIGHTS if "_class_name" in config else TRANSFORMERS_WEIGHTS


def weight_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """Return the safetensors files `stem`... of the network in `folder`: its shards in order, or the single file.

    Raises CheckpointError if there are none, UnsafeContentError for pickles and for shards with other names.
    """
    index = weight_index(folder, stem, variant)
    dotted = _dotted(variant)
    # shards
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ConfigError(f"{index}: 'weight_map' must be an object {{key: file}}, got {shards!r}")
        pattern = re.compile(rf"{re.escape(stem + dotted)}-\d{{5}}-of-\d{{5}}\.safetensors")
        for shard in shards.values():
            if not (isinstance(shard, str) and pattern.fullmatch(shard)):
                raise UnsafeContentError(f"{index}: {shard!r} is not the name of a shard, {stem}-00001-of-00002...")
        return [folder / shard for shard in sorted(set(shards.values()))]
    # a single file
    single = folder / f"{stem}{dotted}.safetensors"
    if not single.is_file():
        refuse_pickles(folder)
        raise CheckpointError(f"{single}: no such file; the folder has {sorted(p.name for p in folder.iterdir())}")
    return [single]


def weight_index(folder: Path, stem: str, variant: str | None = None) -> Path:
    """Return the path of the file that lists the shards of a network; the file need not exist."""
    return folder / f"{stem}.safetensors.index{_dotted(variant)}.json"


def _dotted(variant: str | None) -> str:
    return f".{variant}" if variant else ""


def refuse_pickles(folder: Path) -> None:
    """Raise UnsafeContentError if `folder` holds pickled weights and no safetensors."""
    names = sorted(p.name for p in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UnsafeContentError(
            f"{folder}: the weights are pickled ({', '.join(pickles)}), and opening a pickle runs code. Convert them "
            "to safetensors where you trust their origin, then load again"
        )


def shape_of(handle: Any, key: str) -> tuple[int, ...]:
    """Return the shape of tensor `key` in an open file, from its header."""
    return tuple(handle.get_slice(key).get_shape())


def tensor_of(handle: Any, key: str) -> torch.Tensor:
    """Return the tensor `key` of an open file, in the shape and dtype of its header."""
    return handle.get_tensor(key)


def read_weights(files: list[Path], read: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Return `{key: read(handle, key)}` over the tensors of safetensors files; CheckpointError names a corrupt file."""
    values: dict[str, Any] = {}
    for file in files:
        try:
            require_file(file)
            with safe_open(file, framework="pt") as handle:
                values |= {key: read(handle, key) for key in handle.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as safetensors ({error}); cut short or corrupt, save or download it again"
            ) from error
    return values
