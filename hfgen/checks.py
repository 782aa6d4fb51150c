"""Checks of settings and arguments: each error names the field, the allowed values and the given one."""

import difflib
import math
import re
from collections.abc import Collection
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from hfgen.errors import ConfigError, ConfigTypeError, DataError
from hfgen.registry import DATA_SUFFIXES, DATASETS, IMAGE_SUFFIXES

HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?<![.-])", re.ASCII)
DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""Names on the Hub, with their owner: of a repository, and of a dataset with a configuration, if it has several."""


def require(condition: bool, field: str, value: Any, allowed: str, error: type[ConfigError] = ConfigError) -> None:
    """Raise `error` with the field, the allowed values in words and the given `value`, unless `condition` holds."""
    if not condition:
        raise error(f"{field} must be {allowed}, got {value!r}")


def require_int(field: str, value: Any, low: int = 1, high: int | None = 2**24, kind: type = int) -> int:
    """Return `value` as int. Raises ConfigTypeError unless it is an int, ConfigError unless it is in [low, high].

    `high`: None for no upper bound. `kind`: accepted type; settings that are saved as JSON must be an `int`. A bool is
    no int.
    """
    allowed = f"an int >= {low}" if high is None else f"an int in [{low}, {high}]"
    require(isinstance(value, kind) and not isinstance(value, bool), field, value, allowed, ConfigTypeError)
    require(low <= value and (high is None or value <= high), field, value, allowed)
    return int(value)


def check_int(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return the argument `value` as int, also from an integer of NumPy; errors as `require_int`."""
    return require_int(name, value, low, high, Integral)


def require_number(field: str, value: Any, low: float, high: float = 1e6, ends: str = "[]") -> float:
    """Return `value` as float. Raises ConfigTypeError unless it is a number, ConfigError unless it is in the interval.

    `ends`: brackets of the interval, "(" and ")" exclude an end. NaN is in no interval. A bool is no number.
    """
    allowed = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if high == math.inf:
        allowed = f"a number {'>' if ends[0] == '(' else '>='} {low:g}"
    require(isinstance(value, Real) and not isinstance(value, bool), field, value, allowed, ConfigTypeError)
    require(low <= value <= high, field, value, allowed)
    outside = (value == low and ends[0] == "(") or (value == high and ends[1] == ")")
    require(not outside, field, value, allowed)
    return float(value)


def require_choice(field: str, value: Any, choices: Collection[str]) -> None:
    """Raise ConfigError unless `value` is one of the texts `choices`."""
    require(isinstance(value, str) and value in choices, field, value, f"one of {', '.join(choices)}")


def nearest(name: Any, names: Collection[str]) -> str:
    """Return the hint for an unknown name: the nearest of `names`, or all of them, as "did you mean x?" """
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"


def require_size(field: str, value: Any, high: int | None = 2**12) -> tuple[int, int]:
    """Return (height, width) from an int, the side of a square, or from a pair. Raises ConfigError for other values."""
    sides = value if isinstance(value, list | tuple) else [value, value]
    require(len(sides) == 2, field, value, "an int or a pair (height, width)")
    return require_int(field, sides[0], high=high), require_int(field, sides[1], high=high)


def check_divisible(where: str, height: int, width: int, levels: int) -> None:
    """Raise ConfigError with the nearest valid sizes unless height and width can be halved `levels - 1` times."""
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise ConfigError(
            f"{where} must have height and width divisible by {factor} = 2^(levels - 1) for {levels} levels, got "
            f"{height}x{width}; the nearest valid sizes are {nearest_sizes(height, width, factor, factor)}"
        )


def nearest_sizes(height: int, width: int, factor: int, least: int) -> str:
    """Return the nearest smaller and larger sizes with sides divisible by `factor` and at least `least`, in words."""
    below = [max(least, side // factor * factor) for side in (height, width)]
    above = [max(least, math.ceil(side / factor) * factor) for side in (height, width)]
    return " and ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))


def check_repo_id(name: str) -> None:
    """Raise ConfigError unless `name` can be a repository of a user or an organisation."""
    if not HUB_ID.fullmatch(name):
        raise ConfigError(f"{name!r} is no repository on the Hub; it must be user/name or organisation/name, each of "
                          "letters, digits, '-', '_' and '.', without '--' and '..'")


def is_name_of_object(value: Any) -> bool:
    """Return whether a value is the name of a Python object, such as `<dataset>`."""
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")


def path_of(name: str | Path) -> Path | None:
    """Return a path with the home folder of `~`; None for a text that cannot be one, such as "" or 5,000 letters."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    return path if str(name) and "\0" not in str(name) else None


def check_model(model: str | Path) -> None:
    """Raise ConfigError for a model that is neither on disk nor named like a repository; the Hub is not asked.

    Names of Python objects are left alone.
    """
    path = path_of(model)
    if is_name_of_object(model) or (path is not None and path.exists()):
        return
    hint = "" if path is None else _neighbour(path)
    if hint or not HUB_ID.fullmatch(str(model)):
        raise ConfigError(f"{str(model)!r}: no such folder, and not a Hub id (owner/name) either; "
                          f"{hint or 'check the spelling'}")  # fmt: skip


def check_dataset(name: str) -> None:
    """Raise DataError for data that are neither built in nor on disk nor named like a dataset of the Hub.

    The Hub is not asked. Patterns of files and names of Python objects are left alone.
    """
    # accept data that are there
    path = path_of(name)
    if path is None:
        raise DataError(f"{name!r:.80}: cannot be the name of a file, nor of a dataset")
    if name in DATASETS or set(name) & set("*?[<") or path.exists():
        return
    # accept a Hub id
    near = difflib.get_close_matches(name, DATASETS, 1, cutoff=0.75)
    hint = f"did you mean {near[0]!r}?" if near else _neighbour(path)
    looks_like_path = name.startswith(("/", ".", "~")) or path.suffix.lower() in (*IMAGE_SUFFIXES, *DATA_SUFFIXES)
    if DATASET_ID.fullmatch(name) and not looks_like_path and not hint:
        return
    raise DataError(
        f"{name}: no such file or folder; {hint}{' ' if hint else ''}a dataset is one of {', '.join(DATASETS)}, a "
        "folder of images or of parquet files, such a file, a .npy or .npz file, or a Hub id owner/name"
    )


def _neighbour(path: Path) -> str:
    """Return the question whether a similar name beside a missing path is meant; "" if there is none."""
    if not path.parent.name or not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [one.name for one in path.parent.iterdir()], 1, cutoff=0.75)
    return f"did you mean {str(path.parent / near[0])!r}?" if near else ""
