"""Slices of splits, in the grammar of `datasets`: `train[:80%]`, `train[80%:]`, `train[100:200]`, `a[:10]+a[20:]`.

`datasets.ReadInstruction` reads them. Percentages are rounded to the nearest item (halves to even). A negative bound
counts from the end; a bound beyond the end is the end. One `%` makes both bounds percentages.
"""

import re
from dataclasses import dataclass

import numpy as np

from hfgen.data.order import Ints
from hfgen.errors import ConfigError, DataError

PLAIN = re.compile(r"\w+(?:\.\w+)*")
GRAMMAR = "a split is a name with or without a slice, such as train, train[:80%], train[80%:], train[100:200]"


@dataclass(frozen=True)
class Split:
    """A split and a selection of its items: all of them, or those of the slices in `text`."""

    name: str
    text: str = ""

    @classmethod
    def parse(cls, where: str, text: str) -> "Split":
        """Return the split that `text` describes. Raises ConfigError, naming the dataset `where`, for other texts."""
        # a split without a slice
        if PLAIN.fullmatch(text):
            return cls(text, text)
        # the names in front of the slices
        names = {part.partition("[")[0] for part in text.split("+")}
        try:
            if len(names) != 1:
                raise ValueError("several splits")
            _positions(text, dict.fromkeys(names, 0))
        except ValueError as error:
            raise ConfigError(f"{where}: cannot read the split {text!r} ({error}); {GRAMMAR}") from error
        return cls(names.pop(), text)

    @property
    def sliced(self) -> bool:
        """Return whether the text has a slice, or several parts."""
        return self.text not in ("", self.name)

    def indices(self, where: str, n: int) -> Ints | None:
        """Return the indices of the selection among `n` items, in order; None for all.

        Raises DataError for a slice without items.
        """
        if not self.sliced:
            return None
        positions = _positions(self.text, {self.name: n})
        chosen = np.concatenate([np.arange(first, end, dtype=np.int64) for first, end in positions])
        if not len(chosen):
            raise DataError(f"{where}: the slice {self.text!r} is empty; the split has {n:,} items")
        return chosen


def require_split(where: str, split: Split, there: list[str]) -> None:
    """Raise ConfigError, naming the splits `there`, unless this split is one of them."""
    if split.name not in there:
        raise ConfigError(f"{where}: there is no split {split.name!r}; splits: {', '.join(sorted(there))}")


def _positions(text: str, sizes: dict[str, int]) -> list[tuple[int, int]]:
    """Return the bounds of each slice, for splits of these sizes. Raises ValueError for a text that is no slice."""
    from datasets import ReadInstruction  # takes a second, and a split without a slice does not need it

    return [(part.from_, part.to) for part in ReadInstruction.from_spec(text).to_absolute(sizes)]
