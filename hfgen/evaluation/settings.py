"""The settings of an evaluation, checked before anything is sampled."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hfgen.checks import check_int
from hfgen.errors import ConfigError
from hfgen.training.engine.settings import is_small

GROUPS = ("frechet", "kid", "prdc", "diversity", "likelihood", "usefulness", "privacy", "cost")
DEFAULT = tuple(name for name in GROUPS if name != "usefulness")
"""Groups of metrics by name, and those that are computed if none are named: usefulness trains classifiers."""

AT_MOST = 64 if is_small() else 10_000
"""Samples, by default: as many as there are real items, and no more than this."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `hfgen.evaluate` that decide its numbers; what they mean is said there."""

    metrics: tuple[str, ...] = DEFAULT
    num_samples: int | None = None
    features: str = "pixels"
    classifier: str | None = None
    seed: int = 0
    num_steps: int | None = None
    guidance_scale: float = 1.0
    sampler: str | None = None
    batch_size: int = 64
    neighbours: int = 5
    resamples: int | None = None
    likelihood_images: int | None = None
    likelihood_seconds: float = 15.0
    importance_samples: int = 100
    classifier_steps: int = 500

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the argument, for values that no evaluation can use."""
        object.__setattr__(self, "metrics", known_groups(self.metrics))
        lowest = {"num_samples": 1, "batch_size": 1, "neighbours": 1, "resamples": 2, "likelihood_images": 2}
        for name in (*lowest, "importance_samples", "classifier_steps"):
            if (value := getattr(self, name)) is not None:
                check_int(name, value, lowest.get(name, 1))
        seconds = self.likelihood_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigError(f"likelihood_seconds must be a number > 0, got {seconds!r}")

    def only(self, names: Sequence[str]) -> Any:
        """Return the settings `names` alone: a group of metrics sees no others than those that its cache key has."""
        return SimpleNamespace(**{name: getattr(self, name) for name in names})

    def count(self, real: int) -> int:
        """Return how many samples are made, for `real` real items."""
        return self.num_samples or min(real, AT_MOST)

    def check_counts(self, real: int) -> None:
        """Raise ConfigError where there are too few samples, or real items, for what is asked."""
        samples, k = self.count(real), self.neighbours
        smallest = k + 1 if "prdc" in self.metrics else 2
        smallest = max(4, smallest) if {"frechet", "kid", "prdc"} & {*self.metrics} else 1
        if samples < smallest or real // 2 < smallest:
            raise ConfigError(
                f"num_samples must be at least {smallest} and the real items at least {2 * smallest}, for "
                f"{', '.join(self.metrics)} with {k} neighbours; got {samples} samples and {real} real items"
            )


def known_groups(metrics: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return groups of metrics in order; ConfigError, with the nearest name, for one that there is not."""
    asked = metrics.split(",") if isinstance(metrics, str) else DEFAULT if metrics is None else metrics
    names = [name.strip() for name in asked]
    for name in names:
        if name not in GROUPS:
            near = difflib.get_close_matches(name, GROUPS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"metrics: there is no {name!r}; {hint}there are {', '.join(GROUPS)}")
    if not names:
        raise ConfigError(f"metrics must name at least one of {', '.join(GROUPS)}")
    return tuple(name for name in GROUPS if name in names)
