"""The variational bound on the likelihood of a diffusion model, term by term (Ho et al. 2020, section 2)."""

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
"""A denoiser as a function of x_t (B, ...) and timesteps (B,): what the network predicts."""


def predictor(net: Any, class_labels: Tensor | None = None) -> Predict:
    """Return the network of a pipeline, `pipe.unet`, as a function of x_t and timesteps, for the labels (B,) if any."""
    return lambda x_t, t: net(x_t, t, class_labels=class_labels, return_dict=False)[0]


@dataclass(frozen=True)
class Bound:
    """The bound on -log p(x) of each item and its terms, in nats, float64: `prior` + `steps` summed + `decoder`.

    `prior` (B,) is L_T, `steps` (B, T - 1) holds L_1, ..., L_{T-1} (L_{t} for the step from x_{t+1} to x_t, the least
    noisy first), `decoder` (B,) is L_0. `dim` is the number of dimensions of an item. Of a bound from K draws `steps`
    is (B, K): for each stretch of timesteps one of its terms times its length.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    dim: int

    @property
    def nats(self) -> Tensor:
        """Return the whole bound on -log p(x), (B,)."""
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """Return the whole bound in bits per dimension, (B,)."""
        return torch.as_tensor(bits_per_dim(-self.nats, self.dim))


def stretches(T: int, draws: int | None = None) -> list[tuple[int, int]]:
    """Return [first, end) of the stretches that divide the timesteps 0, ..., T - 1: 0 alone, then at most `draws`.

    Their lengths grow geometrically, as far as whole numbers can: most of the bound lies where there is little noise.
    Default: every timestep alone.
    """
    if draws is None or draws >= T - 1:
        return [(t, t + 1) for t in range(T)]
    require_int("draws", draws)
    edges = [round(edge) for edge in torch.logspace(0, math.log10(T), draws + 1, dtype=torch.float64).tolist()]
    edges = sorted({0, *edges})
    return list(itertools.pairwise(edges))


@torch.no_grad()
def variational_bound(
    predict: Predict,
    scheduler: DDPMScheduler,
    x: Tensor,
    levels: int | None = 256,
    generator: torch.Generator | None = None,
    draws: int | None = None,
) -> Bound:
    """Return the bound on -log p(x) of items `x` (B, ...), every term with one draw of x_t (Ho et al. 2020, eq. 5).

    `draws`: at most so many of the terms L_1, ..., L_{T-1}, drawn for each item, one from each of as many stretches of
    timesteps, which are longer the noisier: their sum, weighted by the lengths, is unbiased. Default: all terms.

    `x`: pixels at `levels` even steps in [-1, 1], whose probability is bounded; None for data with a density, which is
    then bounded instead. T evaluations of `predict`. Of a network trained on the SDE the scheduler is
    `VPSDEScheduler.discretised()`. ConfigError for a single timestep, and for pixels outside [-1, 1].
    """
    T = len(scheduler.betas)
    if T < 2:
        raise ConfigError(f"the bound needs a scheduler with at least 2 timesteps, got {T}")
    if levels is not None and float(x.abs().max()) > 1 + 1e-6:
        found = f"{float(x.min()):g} to {float(x.max()):g}"
        raise ConfigError(f"x must be in [-1, 1], found {found}; levels=None is for data with a density")
    terms = []
    for first, end in stretches(T, draws):
        t = torch.full((len(x),), first, device=x.device)
        if end > first + 1:
            u = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
            t = first + (u * (end - first)).long()                                      # (B,), uniform in [first, end)
        x_t = scheduler.add_noise(x, randn_tensor(x.shape, generator, x.device, x.dtype), t)
        given = (scheduler, predict(x_t, t), t, x_t, x)
        term = kl_term(*given) if first else decoder_term(*given, levels)
        terms.append(term.double() * (end - first))
    return Bound(prior_term(scheduler, x).double(), torch.stack(terms[1:], 1), terms[0], x[0].numel())
