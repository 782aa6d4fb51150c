"""Slices of splits, in the grammar of `datasets`: `train[:80%]`, `train[80%:]`, `train[100:200]`, `a[:10]+a[20:]`.

Percentages are rounded to the nearest item (halves to even). A negative bound counts from the end; a bound beyond the
end is the end. One `%` makes both bounds percentages.
"""

import re
from dataclasses import dataclass

import numpy as np

from hfgen.data.order import Ints
from hfgen.errors import ConfigError, DataError

BOUND = r"(?:(-?\d+(?:_\d+)*)(%)?)?"
PART = re.compile(rf"(\w+(?:\.\w+)*)(?:\[{BOUND}:{BOUND}\])?")
GRAMMAR = "a split is a name with or without a slice, such as train, train[:80%], train[80%:], train[100:200]"


@dataclass(frozen=True)
class Split:
    """A split and a selection of its items: stretches (start, stop, whether in percent); no stretches for all items."""

    name: str
    stretches: tuple[tuple[int | None, int | None, bool], ...] = ()
    text: str = ""

    @classmethod
    def parse(cls, where: str, text: str) -> "Split":
        """Return the split that `text` describes. Raises ConfigError, naming the dataset `where`, for other texts."""
        # names and bounds
        matches = [PART.fullmatch(part) for part in text.split("+")]
        parts = [match.groups() for match in matches if match]
        names = {part[0] for part in parts}
        if len(parts) != len(matches) or len(names) != 1:
            raise ConfigError(f"{where}: cannot read the split {text!r}; {GRAMMAR}")
        # percentages
        bounds = [(_int(start), _int(stop), bool(a or b)) for _, start, a, stop, b in parts]
        if any(percent and max(abs(start or 0), abs(stop or 0)) > 100 for start, stop, percent in bounds):
            raise ConfigError(f"{where}: the split {text!r} has a percentage beyond 100%; {GRAMMAR}")
        sliced = "[" in text or len(bounds) > 1
        return cls(names.pop(), tuple(bounds) if sliced else (), text)

    def indices(self, where: str, n: int) -> Ints | None:
        """Return the indices of the selection among `n` items, in order; None for all.

        Raises DataError for a slice without items.
        """
        if not self.stretches:
            return None
        chosen = np.concatenate([np.arange(*_absolute(*stretch, n), dtype=np.int64) for stretch in self.stretches])
        if not len(chosen):
            raise DataError(f"{where}: the slice {self.text!r} is empty; the split has {n:,} items")
        return chosen


def require_split(where: str, split: Split, there: list[str]) -> None:
    """Raise ConfigError, naming the splits `there`, unless this split is one of them."""
    if split.name not in there:
        raise ConfigError(f"{where}: there is no split {split.name!r}; splits: {', '.join(sorted(there))}")


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _absolute(start: int | None, stop: int | None, percent: bool, n: int) -> tuple[int, int]:
    """Return the bounds of a stretch in [0, n]."""
    return _position(start, percent, n, default=0), _position(stop, percent, n, default=n)


def _position(bound: int | None, percent: bool, n: int, default: int) -> int:
    """Return a bound as a position in [0, n]."""
    if bound is None:
        return default
    if percent:
        bound = round(bound * n / 100)
    if bound < 0:
        return max(n + bound, 0)
    return min(bound, n)
