"""Langevin dynamics: samples of any density whose score, the gradient of its logarithm, is known or learned."""

from collections.abc import Callable, Iterator

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


def langevin_step(x: Tensor, score: Tensor, step_size: float, z: Tensor) -> Tensor:
    """Return x + step_size score + sqrt(2 step_size) z, z standard normal (Song and Ermon 2019, eq. 4)."""
    return x + step_size * score + (2 * step_size) ** 0.5 * z


@torch.no_grad()
def langevin(
    score: Callable[[Tensor], Tensor], x: Tensor, num_steps: int, step_size: float, generator: Generators = None
) -> Iterator[Tensor]:
    """Yield x and the states after each of `num_steps` steps of unadjusted Langevin dynamics, each like `x` (B, ...).

    `score` (B, ...) -> (B, ...) is grad log p; for small steps and many of them the states become samples of p. A
    score that changes with the noise level makes it annealed: run once for each level, from large to small.
    """
    yield x
    for _ in range(num_steps):
        z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = langevin_step(x, score(x), step_size, z)
        yield x
