"""A wall-clock budget in place of a number of steps: throw-away steps are timed, then everything is fixed.

At least 85 % of a budget is for training steps. The rest pays for timing them, for checkpoints, and for as many sample
grids, as large as they then can be.
"""

import dataclasses
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hfgen.data import Dataset
from hfgen.training.engine.distributed import Interrupted, StopSignal
from hfgen.training.engine.loop import Build, Engine
from hfgen.training.engine.settings import Settings, seconds_of

ENOUGH = 10
"""Below a tenth of the recommended steps a smaller network is taken; a model of so few steps is not trained."""

WARM_UP, TIMED = 3, 50
"""Steps that are not timed, and the most that are."""

TIMING, ROUGH_TIMING = 0.025, 0.005
"""Shares of the budget that timing the steps of the chosen network may take, and of one that may be chosen."""

ROUGH_ROWS = 8
"""Samples of each process in the steps that are timed to choose a network."""

PREVIEWS = 0.05
"""Share of the budget that all sample grids together may take."""

PROBE = {"preview_images": 8, "preview_steps": 2}
"""The grid that is drawn to measure the time of one."""

GRIDS = ((64, 20), (16, 20), (16, 10), (4, 10))
"""Images and denoising steps of the grids that are drawn where the one that the settings ask for does not fit."""

DISK = 50e6
"""Bytes a second in which a checkpoint is written, hashed and moved, at the least."""

@dataclasses.dataclass(frozen=True)
class Budget:
    """A wall-clock budget: `left(share)` are the seconds that remain of it, less a share."""

    seconds: float
    started: float

    def left(self, share: float = 0.0) -> float:
        """Return the seconds that remain now, less `share` of the whole."""
        return self.seconds * (1 - share) - (time.monotonic() - self.started)


def within_budget(
    settings: Settings,
    smaller: list[Any],
    build: Build,
    dataset: Dataset,
    accelerator: Accelerator,
    started: float,
    stop: StopSignal,
    look: Callable[[Engine], Any],
) -> tuple[Any, list[str]]:
    """Return the settings with steps, grids and network that fit in the budget, and a line on each that was changed.

    `smaller`: the settings with networks that may take the place of the recommended one, the smallest first. `look`
    draws a grid. `started`: when the budget began, in time.monotonic(). Rank 0 decides. Raises Interrupted on a stop
    signal.
    """
    # choose the network, and build it with a small grid
    budget = Budget(seconds_of(settings.budget or ""), started)
    chosen = with_network(settings, smaller, build, dataset, accelerator, budget, stop)
    trial = Engine(dataclasses.replace(chosen, **_fields(chosen, PROBE)), build, dataset, accelerator)
    # measure the seconds of a step in each stage, of a grid, of a checkpoint
    stages = trial.recipe.stages
    limit = budget.seconds * TIMING
    costs = [seconds_per_step(trial, first, limit, stop) for first in stages(settings.max_steps)]
    probe = seconds_per_look(trial, look, stop)
    saving = seconds_per_save(trial)
    accelerator.free_memory()
    if settings.save_every:
        costs = [cost + saving / settings.save_every for cost in costs]
    # share the time between grids and steps
    left = budget.left() - 2 * saving
    allowed = budget.seconds * PREVIEWS
    seconds, fields = sample_grid(chosen, dataset, probe, allowed)
    most = 0
    if settings.sample_every:
        most = affordable(left, costs, stages) // settings.sample_every
    grids = min(most, int(allowed / max(seconds, 1e-9)) - 1)         # besides the one at the end
    fields["max_steps"] = steps = affordable(left - (max(0, grids) + 1) * seconds, costs, stages)
    fields["sample_every"] = 0
    if grids > 0:
        fields["sample_every"] = max(settings.sample_every, -(-steps // (grids + 1)))
    chosen = dataclasses.replace(chosen, **fields)
    return cast(tuple[Any, list[str]], agree((chosen, list(notes(settings, chosen)))))


def with_network(
    settings: Settings,
    smaller: list[Any],
    build: Build,
    dataset: Dataset,
    accelerator: Accelerator,
    budget: Budget,
    stop: StopSignal,
) -> Any:
    """Return the settings of the largest network that gets enough steps in the budget, or of the smallest there is.

    From the smallest up, each is timed on a few samples; none is timed that will hardly do, being twice as slow at
    least as the one before it.
    """
    chosen: Any = None
    enough = settings.max_steps // ENOUGH
    if not smaller:
        return settings
    for candidate in (*smaller, settings):
        # time steps of a few samples
        rows = min(ROUGH_ROWS * accelerator.num_processes, candidate.batch_size)
        rough = dataclasses.replace(candidate, batch_size=rows, micro_batch_size=None)
        trial = Engine(rough, build, dataset, accelerator)
        cost = seconds_per_step(trial, 0, budget.seconds * ROUGH_TIMING, stop) * candidate.batch_size / rows
        accelerator.free_memory()
        # take it, unless a smaller one had enough steps
        steps = agree(budget.left(PREVIEWS + TIMING) / cost)
        chosen = candidate if chosen is None or steps >= enough else chosen
        if steps < 2 * enough:
            break
    return chosen


def sample_grid(
    settings: Settings, dataset: Dataset, probe: float, allowed: float
) -> tuple[float, dict[str, Any]]:
    """Return the seconds that a grid takes, and its fields of the settings; `probe`: the seconds of PROBE.

    The largest of which two fit in the `allowed` seconds, else of which one does, else none, in no time. A recipe whose
    grid has no size draws it as it is.
    """
    drawn = _fields(settings, PROBE)
    if not drawn:
        return probe, {}
    # list sizes of grids; a plot has a fixed number of points, and some recipes have a fixed number of steps
    images, steps = cast(Any, settings).preview_images, getattr(settings, "preview_steps", 1)
    in_plane = len(dataset.shape) == 1
    unit, sizes = probe / drawn.get("preview_steps", 1), [(images, steps)]
    if not in_plane:
        unit /= PROBE["preview_images"]
        sizes += [(i, min(s, steps)) for i, s in GRIDS if i <= images and (s <= steps or steps == 1)]
    costs = [(unit * s * (bool(i) if in_plane else i), i, s) for i, s in sizes]
    # take the largest that fits
    for together in (2, 1):
        for seconds, i, s in costs:
            if together * seconds <= allowed:
                return seconds, _fields(settings, {"preview_images": i, "preview_steps": s})
    return 0.0, {"preview_images": 0}


def notes(usual: Settings, chosen: Settings) -> Iterator[str]:
    """Yield a line on a network, and one on sample grids, that are smaller or rarer than in the `usual` settings."""
    # report a smaller network
    network = [
        f.name for f in dataclasses.fields(usual)
        if getattr(usual, f.name) != getattr(chosen, f.name) and f.name not in (*PROBE, "max_steps", "sample_every")
    ]  # fmt: skip
    if network:
        yield (
            f"smaller network: {_fields_in_words(chosen, network)}, in place of the recommended "
            f"{_fields_in_words(usual, network)}, which would take fewer than "
            f"{usual.max_steps // ENOUGH:,} steps in {usual.budget}; pictures have less detail than with a "
            "longer --budget"
        )
    # report smaller or rarer grids
    images, steps = (getattr(chosen, name, None) for name in PROBE)
    if images == 0 and getattr(usual, "preview_images", None):
        yield f"no sample grid: drawing one does not fit in {usual.budget}; `hfgen sample` draws one afterwards"
    elif any(getattr(usual, name) != getattr(chosen, name) for name in ("sample_every", *_fields(usual, PROBE))):
        size, often = "", "at the end only"
        if images:
            size = f" of {images} images"
        if images and steps:
            size += f" in {steps} denoising steps"
        if chosen.sample_every:
            often = f"every {chosen.sample_every:,} steps"
        yield f"sample grids{size}, {often}: more does not fit in {usual.budget}"


def untrained(settings: Settings, recommended: int) -> str | None:
    """Return a warning for a run whose budget pays for too few of the `recommended` steps; None if there are enough."""
    steps = settings.max_steps
    if settings.budget is None or steps * ENOUGH >= recommended:
        return None
    # compute a budget that is enough, and name other ways
    needed = seconds_of(settings.budget) * recommended / ENOUGH / max(1, steps)
    ways = [f"--budget {_rounded(needed)} or more", "a smaller --resolution"]
    if hasattr(settings, "block_out_channels"):
        ways.append("fewer --block-out-channels")
    return (
        f"warning: the model is not trained: {settings.budget} are enough for {steps:,} steps, {recommended:,} are "
        f"recommended; expect noise or blur. Change one of: {', '.join(ways)}"
    )


def seconds_per_step(engine: Engine, first: int, limit: float, stop: StopSignal) -> float:
    """Return the median time of up to 50 steps from step `first` on, or of those that fit in `limit` seconds, one at
    least; the first three of them only warm up, where there are more. Raises Interrupted on a stop signal."""
    # take steps, and stamp the end of each
    stamps = [time.monotonic()]
    for _ in engine.train(first, WARM_UP + TIMED, 10**6):
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        stamps.append(time.monotonic())
        if stop.agreed():
            raise Interrupted
        if agree(stamps[-1] - stamps[0] > limit):
            break
    # take the median, without the warm-up
    durations = sorted(b - a for a, b in pairwise(stamps[min(WARM_UP, len(stamps) - 2) :]))
    return durations[len(durations) // 2]


def seconds_per_look(engine: Engine, look: Callable[[Engine], Any], stop: StopSignal) -> float:
    """Return the seconds that `look(engine)` takes. Raises Interrupted on a stop signal, on all processes."""
    before = time.monotonic()
    try:
        look(engine)
    except Interrupted:
        stop.received = True
    seconds = time.monotonic() - before
    if stop.agreed():
        raise Interrupted
    return seconds


def seconds_per_save(engine: Engine) -> float:
    """Return the seconds that a checkpoint takes at most: weights, average and two moments, and half a second."""
    return 0.5 + 16 * sum(engine.sizes().values()) / DISK


def affordable(seconds: float, costs: list[float], stages: Callable[[int], tuple[int, ...]]) -> int:
    """Return the most steps, 1 at least, that take no more than `seconds`; `costs`: seconds of a step in each stage."""

    def needed(steps: int) -> float:
        ends = [min(steps, end) for end in (*stages(steps)[1:], steps)]
        return sum(cost * (end - start) for cost, start, end in zip(costs, (0, *ends), ends, strict=False))

    most = max(1, int(seconds / min(costs)))
    return max(1, bisect_right(range(most + 1), seconds, key=needed) - 1)


def agree(value: Any) -> Any:
    """Return the value of the first process."""
    decided = [value]
    broadcast_object_list(decided)
    return decided[0]


def _fields(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """Return those of the values whose fields the settings have."""
    return {name: value for name, value in values.items() if hasattr(settings, name)}


def _fields_in_words(settings: Settings, names: list[str]) -> str:
    return ", ".join(f"{name} {_words(getattr(settings, name))}" for name in names)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rounded(seconds: float) -> str:
    """Return seconds as a budget, rounded up."""
    if seconds < 90:
        return f"{math.ceil(seconds)}s"
    if seconds < 5400:
        return f"{math.ceil(seconds / 60)}m"
    return f"{math.ceil(seconds / 3600)}h"
