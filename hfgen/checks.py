"""Checks of settings: each error names the field, the value it has and the values it may have."""

import math
from typing import Any

from hfgen.errors import ConfigError


def require(condition: bool, field: str, found: Any, allowed: str) -> None:
    """Raise ConfigError with the field, what was found and what is allowed, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} must be {allowed}, got {found!r}")


def require_int(field: str, found: Any, low: int = 1, high: int = 2**24) -> None:
    """Raise ConfigError unless `found` is a whole number in [low, high] (and not a bool)."""
    whole = isinstance(found, int) and not isinstance(found, bool)
    require(whole and low <= found <= high, field, found, f"an int in [{low}, {high}]")


def require_number(field: str, found: Any, low: float, high: float = 1e6) -> None:
    """Raise ConfigError unless `found` is a number in [low, high]; NaN never is."""
    number = isinstance(found, int | float) and not isinstance(found, bool)
    require(number and low <= found <= high, field, found, f"a number in [{low:g}, {high:g}]")


def check_divisible(where: str, height: int, width: int, levels: int) -> None:
    """Raise ConfigError with the nearest valid sizes unless height and width can be halved `levels - 1` times."""
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        below = [max(factor, side // factor * factor) for side in (height, width)]
        above = [math.ceil(side / factor) * factor for side in (height, width)]
        raise ConfigError(
            f"{where} must have height and width divisible by {factor} = 2^(levels - 1) for {levels} levels, got "
            f"{height}x{width}; the nearest valid sizes are {below[0]}x{below[1]} and {above[0]}x{above[1]}"
        )
