"""Langevin dynamics: samples of a density from its score, the gradient of its logarithm, known or learned."""

from collections.abc import Callable, Iterator

from torch import Tensor

from hfgen.schedulers.processes import Generators, Process, euler_maruyama_step, simulate


def langevin_process(score: Callable[[Tensor], Tensor]) -> Process:
    """Return the process dx = grad log p dt + sqrt(2) dW, whose stationary density is p; `score`: grad log p."""
    return Process(lambda x, t: score(x), 1.0)


def langevin_step(x: Tensor, score: Tensor, step_size: float, z: Tensor) -> Tensor:
    """Return x + step_size score + sqrt(2 step_size) z (Song and Ermon 2019, eq. 4).

    `x`, `score` and the standard normal `z`: (B, ...). `step_size`: positive.
    """
    return euler_maruyama_step(x, score, 1.0, step_size, z)


def langevin(
    score: Callable[[Tensor], Tensor], x: Tensor, num_steps: int, step_size: float, generator: Generators = None
) -> Iterator[Tensor]:
    """Return an iterator over x (B, ...) and the state after each of `num_steps` steps of unadjusted Langevin dynamics.

    `score`: grad log p, (B, ...) -> (B, ...). `step_size`: positive. After many small steps the states are samples of
    p. For annealed dynamics, whose score depends on the noise level, run it once per level, from large to small.
    """
    return simulate(langevin_process(score), x, num_steps, step_size, generator)
