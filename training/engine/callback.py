"""The callback of `hfgen.train`: called after each step with its number and its losses, and able to end the run."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hfgen.training.engine.log import Averages

Callback = Callable[[int, Mapping[str, float]], Any]
"""A function of the number of steps done and of the numbers of the last one; it returns True to end the run there."""


class StepNumbers(Mapping[str, float]):
    """The numbers of one step by name. A loss stays on the device until it is read; then it is fetched as a float."""

    def __init__(self, losses: Mapping[str, Tensor], others: Mapping[str, float]) -> None:
        self._values: dict[str, Tensor | float] = {**others, **losses}

    def __getitem__(self, name: str) -> float:
        return float(self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


class LastStep:
    """The means of a run's scalars over one step, as differences of its running sums; nothing is fetched."""

    def __init__(self, averages: Averages) -> None:
        self._averages = averages
        self.begin()

    def begin(self) -> None:
        """Begin with the next step."""
        self._sums, self._counts = dict(self._averages.sums), dict(self._averages.counts)

    def means(self) -> dict[str, Tensor]:
        """Return the mean of each scalar, of shape (), since `begin`."""
        means = {}
        for name, total in self._averages.sums.items():
            count = self._averages.counts[name] - self._counts.get(name, 0)
            if count:
                means[name] = (total - self._sums.get(name, 0.0)) / count
        return means
