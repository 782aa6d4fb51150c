"""A cache of results, keyed by the hash of everything that they depend on.

Entries lie in the folder HFGEN_CACHE (default: `hfgen` in XDG_CACHE_HOME, ~/.cache): one safetensors file each, with
plain JSON and a checksum in its header. They can be deleted at any time; damaged entries are computed anew.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import hfgen
from hfgen.loading.hashing import hash_of_tensors

FORMAT = 4
"""Version of the computations. A change of a result increases it, and older entries are not found any more."""

Entry = tuple[dict[str, Any], dict[str, Tensor]]
"""An entry: plain JSON, and tensors by name."""


def folder() -> Path:
    """Return the folder of the cache."""
    if given := os.environ.get("HFGEN_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hfgen"


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute results, by name."""
    return {package.__name__: package.__version__ for package in (hfgen, torch, diffusers, transformers)}


def key_of(kind: str, **parts: Any) -> str:
    """Return the sha256 of everything that an entry depends on: its kind, `parts` (plain JSON), and versions."""
    by = {"format": FORMAT, **versions()}
    text = json.dumps({"kind": kind, "versions": by, **parts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Entries by key; none if it is not `on`."""

    def __init__(self, on: bool = True) -> None:
        self.on = on

    def get(self, key: str | None) -> Entry | None:
        """Return an entry; None for a missing or damaged one, and without a `key`."""
        # read the file
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        # check that it is whole
        facts = header.get("facts", "")
        if _hash(facts, tensors) != header.get("sha256"):
            return None
        return json.loads(facts), tensors

    def put(self, key: str | None, facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write an entry, unless there is no `key` or the folder cannot be written to.

        `facts`: plain JSON; `tensors`: tensors of any shape, by name.
        """
        path = self._path(key)
        if path is None:
            return
        # encode the header and the tensors
        text, kept = json.dumps(facts), {name: t.cpu().contiguous() for name, t in (tensors or {}).items()}
        # write beside, then replace
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(kept, temporary, metadata={"facts": text, "sha256": _hash(text, kept)})
            temporary.replace(path)
        except (OSError, SafetensorError):                                  # full or read-only: only time is lost
            with suppress(OSError):
                temporary.unlink()

    def _path(self, key: str | None) -> Path | None:
        return folder() / "evaluations" / key[:2] / f"{key}.safetensors" if self.on and key else None


def _hash(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of an entry; a line break before each name ends the bytes before it."""
    return hash_of_tensors({f"\n{name}": tensor for name, tensor in tensors.items()}, facts)
