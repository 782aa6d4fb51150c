"""The interface between a recipe and the engine: networks, optimisers and the phases of one training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from hfgen.pipelines.base import Pipeline
from hfgen.training.engine.noise import Noise

Batch = dict[str, Any]
Loss = Callable[[Mapping[str, nn.Module], Batch, Noise, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
Guard = Callable[[dict[str, Any], dict[str, float]], tuple[dict[str, Any], str | None]]


def detached(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scalars as the log takes them, without gradients."""
    return {name: value.detach() for name, value in scalars.items()}


@dataclass(frozen=True)
class Phase:
    """One optimisation within a step: these networks are trained on this loss, all others are frozen.

    `loss(nets, batch, noise, memo)` returns the mean loss over the batch and detached scalars to log. `memo` hands
    tensors from one phase of a step to the next. `times` repeats the phase, each time on a fresh batch. `after` runs
    behind the optimiser, for weight clipping.
    """

    name: str
    optimizer: Optimizer
    trains: tuple[str, ...]
    loss: Loss
    times: int = 1
    after: Callable[[], None] | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything the engine needs to know of a family of models.

    `pipeline(nets)` assembles the pipeline from a mapping of networks; a network named in `averaged` is a component of
    it under the same name, and takes part with its moving average. `preview(pipeline)` draws the sample grid; None for
    no grids.
    `evaluate(nets)`, where there is one, returns numbers for that step's line of the log, from the networks as users
    get them. `guard(memory, line)` sees every line of the log, "step" included, and returns the memory that it gets
    with the next one ({} with the first; checkpoints hold it as JSON), and a warning where trouble begins, or None.
    `fetch()`, where there is one, returns numbers of the steps since it was last called, on all processes, for a line
    of the log; its memory is in the buffers of `nets`.
    `stages(steps)` are the steps, of so many, from which on a step costs another time, the first being 0.
    `usage` is the command that tries the finished run `{run}`.
    """

    nets: dict[str, nn.Module]
    phases: list[Phase]
    pipeline: Callable[[Mapping[str, Any]], Pipeline]
    preview: Callable[[Pipeline], Image.Image] | None
    averaged: tuple[str, ...] = field(default=())
    evaluate: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    guard: Guard | None = None
    fetch: Callable[[], dict[str, float]] = dict
    stages: Callable[[int], tuple[int, ...]] = lambda steps: (0,)
    usage: str = "hfgen sample {run} -n 64 --seed 0 -o grid.png"
