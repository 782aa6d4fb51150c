"""A wall-clock budget in place of a number of steps: throw-away steps are timed before a run."""

import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hfgen.data import Dataset
from hfgen.training.engine import Build, Engine
from hfgen.training.settings import Settings, seconds_of


def steps_within(
    settings: Settings,
    build: Build,
    dataset: Dataset,
    accelerator: Accelerator,
    started: float,
    look: Callable[[Engine], Any],
) -> int:
    """Return how many steps fit in the budget, from timing throw-away steps and a sample grid; rank 0 decides.

    Of each stage of the recipe at most 50 steps, or a twentieth of the budget, are timed after three to warm up.
    """
    budget = seconds_of(settings.budget or "")
    trial = Engine(settings, build, dataset, accelerator)
    stages = trial.recipe.stages
    costs = [seconds_per_step(trial, first, budget / 20) for first in stages(settings.max_steps or 0)]
    before = time.monotonic()
    look(trial)
    grid_seconds = time.monotonic() - before
    accelerator.free_memory()
    costs = [cost + (grid_seconds / settings.sample_every if settings.sample_every else 0) for cost in costs]
    left = budget - (time.monotonic() - started) - grid_seconds
    return int(agree(affordable(left, costs, stages)))


def seconds_per_step(engine: Engine, first: int, limit: float) -> float:
    """Return the median time of up to 50 steps from step `first` on, or of those that fit in `limit` seconds."""
    stamps = [time.monotonic()]
    for _ in engine.train(first, 53, 10**6):
        stamps.append(time.monotonic())
        if agree(len(stamps) > 4 and stamps[-1] - stamps[3] > limit):
            break
    durations = sorted(b - a for a, b in pairwise(stamps[3:]))
    return durations[len(durations) // 2]


def affordable(seconds: float, costs: list[float], stages: Callable[[int], tuple[int, ...]]) -> int:
    """Return the most steps, 1 at least, that take no more than `seconds`, by what a step costs in each stage."""

    def needed(steps: int) -> float:
        ends = [min(steps, end) for end in (*stages(steps)[1:], steps)]
        return sum(cost * (end - start) for cost, start, end in zip(costs, (0, *ends), ends, strict=False))

    most = max(1, int(seconds / min(costs)))
    return max(1, bisect_right(range(most + 1), seconds, key=needed) - 1)


def agree(value: Any) -> Any:
    """Return what the first process decided."""
    decided = [value]
    broadcast_object_list(decided)
    return decided[0]
