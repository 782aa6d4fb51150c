"""Rates beta(t), t in [0, 1], of the variance-preserving SDE: continuous counterparts of `hfgen.schedulers.betas`.

A new rate is a class with `beta` and an entry of `RATES`. The base class computes integral and inverse by quadrature
and bisection; the rates here override them with closed forms. All tensors are float64.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import ConfigError

OFFSET = 0.008
"""The constant s of the cosine schedule."""


class Rate(ABC):
    """A rate beta(t) > 0 and B(t), its integral from 0 to t; t is a float64 tensor of any shape in [0, 1]."""

    def __init__(self, num_train_timesteps: int, beta_start: float, beta_end: float) -> None:
        self.low, self.high = num_train_timesteps * beta_start, num_train_timesteps * beta_end
        self.cap = 0.999 * num_train_timesteps

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Return beta(t), > 0, in the shape of t."""

    def integral(self, t: Tensor, panels: int = 256) -> Tensor:
        """Return B(t), in the shape of t, by Gauss-Legendre quadrature: 8 nodes on each of `panels` parts of [0, t]."""
        # nodes and weights of all parts, on [0, 1]
        x, w = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))
        nodes = ((torch.arange(panels, dtype=torch.float64)[:, None] + (x + 1) / 2) / panels).flatten()
        weights = (w / (2 * panels)).repeat(panels)
        # weighted sum of beta on [0, t]
        return t * (self.beta(t[..., None] * nodes.to(t.device)) * weights.to(t.device)).sum(-1)

    def inverse(self, B: Tensor) -> Tensor:
        """Return t in [0, 1] with B(t) = `B`, in the shape of B, by 60 bisections."""
        low, high = torch.zeros_like(B), torch.ones_like(B)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.integral(middle) > B
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


class Linear(Rate):
    """beta(t) = b_0 + t (b_1 - b_0), b_0 = T beta_start, b_1 = T beta_end (Song et al. 2021, appendix C, eq. 32)."""

    def beta(self, t: Tensor) -> Tensor:
        """Return b_0 + t (b_1 - b_0), positive, in the shape of t; t is in [0, 1]."""
        return self.low + t * (self.high - self.low)

    def integral(self, t: Tensor, panels: int = 0) -> Tensor:
        """Return t b_0 + t^2 (b_1 - b_0) / 2, non-negative, in the shape of t; t is in [0, 1]."""
        return t * (self.low + t * (self.high - self.low) / 2)

    def inverse(self, B: Tensor) -> Tensor:
        """Return the root t in [0, 1] of the quadratic B(t) = `B`, in the shape of B, without cancellation."""
        return 2 * B / (self.low + (self.low**2 + 2 * (self.high - self.low) * B).sqrt())


class Cosine(Rate):
    """The rate of gamma(t)^2 = cos^2 a(t) / cos^2 a(0), a(t) = pi/2 (t + s) / (1 + s) (Nichol and Dhariwal 2021).

    beta(t) = pi / (1 + s) tan a(t), at most 0.999 T, as in the discrete schedule.
    """

    def __init__(self, num_train_timesteps: int, beta_start: float, beta_end: float) -> None:
        super().__init__(num_train_timesteps, beta_start, beta_end)
        self.scale = math.pi / (1 + OFFSET)
        # a(0), and the time when the cap is reached
        self.start = self.scale / 2 * OFFSET
        self.knee = (math.atan(self.cap / self.scale) - self.start) * 2 / self.scale

    def _angle(self, t: Tensor) -> Tensor:
        return self.start + self.scale / 2 * t.clamp(max=self.knee)

    def beta(self, t: Tensor) -> Tensor:
        """Return pi / (1 + s) tan a(t), at most 0.999 T, positive, in the shape of t; t is in [0, 1]."""
        return self.scale * self._angle(t).tan()

    def integral(self, t: Tensor, panels: int = 0) -> Tensor:
        """Return 2 log(cos a(0) / cos a(t)), linear after the cap is reached, in the shape of t; t is in [0, 1]."""
        risen = 2 * (math.log(math.cos(self.start)) - self._angle(t).cos().log())
        return risen + self.cap * (t - self.knee).clamp(min=0)

    def inverse(self, B: Tensor) -> Tensor:
        """Return t in [0, 1] with B(t) = `B`, in the shape of B: the closed form of `integral` solved for t."""
        # angle before the cap is reached
        at_knee = self.integral(B.new_tensor(self.knee))
        angle = (math.cos(self.start) * (-B.clamp(max=at_knee) / 2).exp()).acos()
        # linear after it
        return (angle - self.start) * 2 / self.scale + (B - at_knee).clamp(min=0) / self.cap


class Table(Rate):
    """The rate of given betas (T,): constant between integer timesteps, so B is exact at each of them.

    B((i + 1) / T) = -log alpha_bar_i, linear in between (as log sigma in diffusers). A last beta of 1, which leaves no
    signal, counts as 1 - exp(-25). Raises ConfigError for betas outside (0, 1].
    """

    def __init__(self, betas: Tensor) -> None:
        if len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ConfigError(f"betas must be at least two numbers in (0, 1], got {betas.min():g} to {betas.max():g}")
        self.steps = -torch.log1p(-betas.double().clamp(max=1 - math.exp(-25)))            # (T,)
        self.knots = torch.cat([self.steps.new_zeros(1), self.steps.cumsum(0)])            # (T + 1,)

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the timestep of t and the position within it, in [0, 1]."""
        scaled = t * len(self.steps)
        index = scaled.floor().long().clamp(0, len(self.steps) - 1)
        return index, scaled - index

    def beta(self, t: Tensor) -> Tensor:
        """Return the constant rate of the timestep of t, positive, in the shape of t; t is in [0, 1]."""
        return self.steps.to(t.device)[self._place(t)[0]] * len(self.steps)

    def integral(self, t: Tensor, panels: int = 0) -> Tensor:
        """Return B(t), linear between the knots, non-negative, in the shape of t; t is in [0, 1]."""
        index, part = self._place(t)
        return self.knots.to(t.device)[index] + self.steps.to(t.device)[index] * part

    def inverse(self, B: Tensor) -> Tensor:
        """Return t in [0, 1] with B(t) = `B`, in the shape of B: a search among the knots, then linear."""
        knots, steps = self.knots.to(B.device), self.steps.to(B.device)
        index = (torch.searchsorted(knots, B, right=True) - 1).clamp(0, len(steps) - 1)
        return (index + (B - knots[index]) / steps[index]) / len(steps)


RATES: dict[str, type[Linear | Cosine]] = {"linear": Linear, "squaredcos_cap_v2": Cosine}
"""Rates by the name of their discrete schedule in diffusers' configurations."""
