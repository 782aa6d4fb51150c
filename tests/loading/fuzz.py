"""Model folders with one random fault each, by a seed: JSON values, tensors, bytes and files.

    python -m tests.loading.fuzz [--cases 10000] [--seed 0] [--families ddpm gan ...]

Each folder must load, or raise an HfgenError in bounded time; anything else is printed with its seed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hfgen import AutoPipeline
from hfgen.errors import HfgenError

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 8000, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, float("inf"), float("nan"), "", "x",
    "a" * 5000, "../x", "\0", [], [[]], [None], {}, {"x": []}, ["pipeline", []], [1, 2, 3],
    ["diffusers", "UNet2DModel"],
)  # fmt: skip
"""Values that take the place of another in a JSON file."""

DTYPES = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float64, torch.float16)

LIMIT = 20
"""Seconds after which a folder counts as one that never ends: the bound is 10 s, on a machine with other work."""

Fault = Callable[[Path, random.Random], str]


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return each place in a JSON document, as its container and key."""
    keys: list[Any] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [place for key in keys for place in [(value, key), *nodes(value[key])]]


def a_value(folder: Path, draw: random.Random) -> str:
    """Replace, delete or double one value of a JSON file; return what was done."""
    path = draw.choice(sorted(folder.rglob("*.json")))
    document = json.loads(path.read_text())
    places = nodes(document)[:2000]
    if not places:
        return "nothing"
    container, key = draw.choice(places)
    if isinstance(container, dict) and draw.random() < 0.1:
        del container[key]
        said = f"without {key!r}"
    elif isinstance(container, dict) and draw.random() < 0.1:
        container[draw.choice(["x", "", "_x", "a" * 100])] = draw.choice(JUNK)
        said = "with another key"
    else:
        container[key] = draw.choice(JUNK)
        said = f"{key!r} = {container[key]!r:.60}"
    path.write_text(json.dumps(document))
    return f"{path.relative_to(folder)}: {said}"


def a_tensor(folder: Path, draw: random.Random) -> str:
    """Change type, shape, values or name of one tensor; return what was done."""
    path = draw.choice(sorted(folder.rglob("*.safetensors")))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    kind = draw.choice(["dtype", "shape", "nan", "drop", "rename", "empty", "double"])
    value = tensors.pop(name)
    if kind == "dtype":
        dtype = draw.choice(DTYPES)
        tensors[name], kind = value.to(dtype), str(dtype)
    elif kind == "shape":
        tensors[name] = value[None].contiguous()
    elif kind == "nan":
        tensors[name] = torch.full_like(value, float("nan")) if value.is_floating_point() else value
    elif kind == "rename":
        tensors[f"{name}x"] = value
    elif kind == "empty":
        tensors[name] = value.new_empty(0)
    elif kind == "double":
        tensors |= {name: value, f"{name}.x": value.clone()}
    save_file(tensors, path)
    return f"{path.relative_to(folder)}: {name} {kind}"


def some_bytes(folder: Path, draw: random.Random) -> str:
    """Cut a file short, or change bytes of it; return what was done."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    if draw.random() < 0.3 or not data:
        data = data[: draw.randrange(len(data) + 1)]
        said = f"{len(data)} bytes"
    else:
        for _ in range(draw.choice([1, 1, 4])):
            data[draw.randrange(min(len(data), draw.choice([8, 400, 10**9])))] = draw.randrange(256)
        said = "other bytes"
    path.write_bytes(bytes(data))
    return f"{path.relative_to(folder)}: {said}"


def a_file(folder: Path, draw: random.Random) -> str:
    """Delete a file or a folder, put a folder or a link in its place, or empty it; return what was done."""
    path = draw.choice(sorted(folder.rglob("*")))
    kind = draw.choice(["gone", "folder", "link", "file", "pipe"])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "file":
        path.write_bytes(b"")
    elif kind == "pipe":
        os.mkfifo(path)
    return f"{path.relative_to(folder)}: {kind}"


FAULTS: tuple[Fault, ...] = (a_value, a_value, a_value, a_tensor, some_bytes, a_file)


def broken(original: Path, folder: Path, seed: int) -> str:
    """Make `folder` a copy of a model with the fault of a seed; return what was done."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    draw = random.Random(seed)
    return draw.choice(FAULTS)(folder, draw)


def outcome(folder: Path) -> str:
    """Return "loaded", the name of the HfgenError, or the traceback of any other exception."""
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            AutoPipeline.from_pretrained(folder)
    except HfgenError as error:
        return type(error).__name__
    except BaseException:
        return traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    return "loaded"


class Slow(BaseException):
    """A folder that is not loaded in time; no `except Exception` hides it."""


def _too_slow(*_: Any) -> None:
    raise Slow(f"not done after {LIMIT} s")


def run(original: Path, family: str, seeds: range) -> tuple[Counter[str], list[str]]:
    """Return the counts of outcomes over seeds, and the seed, fault and traceback of each that is undocumented."""
    counts, undocumented = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            fault = broken(original, Path(temporary, "model"), seed)
            found = outcome(Path(temporary, "model"))
            if "\n" in found:
                undocumented.append(f"{family}, seed {seed}: {fault}\n{found}")
                found = "undocumented"
            counts[found] += 1
    return counts, undocumented


def main() -> int:
    """Break folders of each family, print the outcomes, and return 1 if any of them is undocumented."""
    from tests.hub.models import FAMILIES, make

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="Folders in all.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    options = parser.parse_args()
    each, failed = options.cases // len(options.families), 0
    with tempfile.TemporaryDirectory() as temporary:
        for family in options.families:
            make(family).save_pretrained(Path(temporary, family))
            counts, undocumented = run(Path(temporary, family), family, range(options.seed, options.seed + each))
            print(f"{family}: {', '.join(f'{name} {n:,}' for name, n in counts.most_common())}", flush=True)
            for text in undocumented:
                print(text, flush=True)
            failed += len(undocumented)
    print(f"undocumented: {failed:,} of {each * len(options.families):,}")
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
