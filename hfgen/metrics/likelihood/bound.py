"""The variational bound on the likelihood of a diffusion model, by terms (Ho et al. 2020, section 2)."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.checks import require_int
from hfgen.errors import ConfigError
from hfgen.metrics.likelihood.units import bits_per_dim
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.reverse import decoder_term, kl_term, prior_term

Predict = Callable[[Tensor, Tensor], Tensor]
"""A denoiser as a function of x_t (B, ...) and timesteps (B,); it returns the network's output."""


def predictor(net: Any, class_labels: Tensor | None = None) -> Predict:
    """Return the network of a pipeline, `pipe.unet`, as a function of x_t and timesteps.

    `class_labels` (B,): classes in [0, K - 1], conditions of a class-conditional network.
    """
    return lambda x_t, t: net(x_t, t, class_labels=class_labels, return_dict=False)[0]


@dataclass(frozen=True)
class Bound:
    """The bound on -log p(x) of each item and its terms, in nats, float64: `prior` + sum of `steps` + `decoder`.

    `prior` (B,) is L_T. `steps` (B, T - 1) holds L_1, ..., L_{T-1} (L_{t} is the step from x_{t+1} to x_t; the least
    noisy is first). `decoder` (B,) is L_0. `dim` is the number of dimensions of an item. For a bound from K draws
    `steps` is (B, K): one term of each stretch of timesteps, times the length of the stretch.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    dim: int

    @property
    def nats(self) -> Tensor:
        """Return the bound on -log p(x) in nats, (B,) float64."""
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """Return the bound in bits per dimension, (B,) float64."""
        return torch.as_tensor(bits_per_dim(-self.nats, self.dim))


def stretches(T: int, draws: int | None = None) -> list[tuple[int, int]]:
    """Return the stretches [first, end) that divide the timesteps 0, ..., T - 1: timestep 0, then at most `draws` more.

    Their lengths grow geometrically, up to rounding, because timesteps with little noise contribute most of the bound.
    Default of `draws`: None (each timestep is a stretch). Raises ConfigError for draws below 1.
    """
    if draws is None or draws >= T - 1:
        return [(t, t + 1) for t in range(T)]
    require_int("draws", draws)
    # round edges that grow geometrically, and drop equal ones
    edges = torch.logspace(0, math.log10(T), draws + 1, dtype=torch.float64).tolist()
    distinct = sorted({0, *map(round, edges)})
    return list(itertools.pairwise(distinct))


@torch.no_grad()
def variational_bound(
    predict: Predict,
    scheduler: DDPMScheduler,
    x: Tensor,
    levels: int | None = 256,
    generator: torch.Generator | None = None,
    draws: int | None = None,
) -> Bound:
    """Return the bound on -log p(x) of items `x` (B, ...), with one draw of x_t per term (Ho et al. 2020, eq. 5).

    `draws`: largest number of the terms L_1, ..., L_{T-1}, drawn for each item: one term of each stretch of timesteps.
    Their sum, weighted by the lengths of the stretches, is unbiased. Default: None (all terms, T evaluations of
    `predict`).
    `levels`: number of even levels of the pixels in [-1, 1]; the bound is on their probability. None for other data;
    the bound is on their density.
    `scheduler`: for a network trained on the SDE, `VPSDEScheduler.discretised()`.
    Raises ConfigError for fewer than two timesteps and for pixels outside [-1, 1].
    """
    # check timesteps and pixels
    T = len(scheduler.betas)
    if T < 2:
        raise ConfigError(f"the bound needs a scheduler with at least 2 timesteps, got {T}")
    if levels is not None and float(x.abs().max()) > 1 + 1e-6:
        extent = f"{float(x.min()):g} to {float(x.max()):g}"
        raise ConfigError(f"x must be in [-1, 1], found {extent}; levels=None is for data with a density")
    terms = []
    for first, end in stretches(T, draws):
        # draw a timestep of the stretch for each item
        t = torch.full((len(x),), first, device=x.device)
        if end > first + 1:
            u = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
            t = first + (u * (end - first)).long()                                      # (B,), uniform in [first, end)
        # estimate its term from one draw of x_t
        x_t = scheduler.add_noise(x, randn_tensor(x.shape, generator, x.device, x.dtype), t)
        given = (scheduler, predict(x_t, t), t, x_t, x)
        term = kl_term(*given) if first else decoder_term(*given, levels)
        terms.append(term.double() * (end - first))
    return Bound(prior_term(scheduler, x).double(), torch.stack(terms[1:], 1), terms[0], x[0].numel())
