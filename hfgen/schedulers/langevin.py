"""Langevin dynamics: samples of a density from its score, the gradient of its logarithm, known or learned."""

from collections.abc import Callable, Iterator

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


def langevin_step(x: Tensor, score: Tensor, step_size: float, z: Tensor) -> Tensor:
    """Return x + step_size score + sqrt(2 step_size) z (Song and Ermon 2019, eq. 4).

    `x`, `score` and the standard normal `z`: (B, ...). `step_size`: positive.
    """
    return x + step_size * score + (2 * step_size) ** 0.5 * z


@torch.no_grad()
def langevin(
    score: Callable[[Tensor], Tensor], x: Tensor, num_steps: int, step_size: float, generator: Generators = None
) -> Iterator[Tensor]:
    """Yield x (B, ...) and the state after each of `num_steps` steps of unadjusted Langevin dynamics.

    `score`: grad log p, (B, ...) -> (B, ...). `step_size`: positive. After many small steps the states are samples of
    p. For annealed dynamics, whose score depends on the noise level, run it once per level, from large to small.
    """
    yield x
    for _ in range(num_steps):
        z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = langevin_step(x, score(x), step_size, z)
        yield x
