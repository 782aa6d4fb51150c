"""One step of each sampler of the variance-preserving process, as one function of tensors each.

Notation: x_t = gamma x_0 + sigma eps; lam = log(gamma / sigma) grows from noise to data. A step goes from the level `s`
to the level `t`, h = lam_t - lam_s > 0. `x_0` and `eps` are the network's estimates at s, in the shape of x (B, ...),
and x = gamma x_0 + sigma eps also after x_0 was clipped. Levels are Python floats, so no step waits for a device. Each
function returns a tensor of the shape of x.
"""

import math
from typing import NamedTuple

from torch import Tensor


class Level(NamedTuple):
    """One noise level: the time t in [0, 1], the network's timestep tau, gamma, sigma and lam = log(gamma / sigma)."""

    t: float
    tau: float
    gamma: float
    sigma: float
    lam: float


class Estimate(NamedTuple):
    """An estimate of x_0 (B, ...) and the level where the network made it."""

    x_0: Tensor
    level: Level


def slope(x: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """Return dx/dlam = -sigma (eps - sigma x) of the probability flow (Song et al. 2021, eq. 13, in lam).

    `x` and `eps`: (B, ...). `sigma`: in (0, 1].
    """
    return (eps - sigma * x) * -sigma


def euler(x: Tensor, eps: Tensor, s: Level, t: Level) -> Tensor:
    """Return x + h slope, one Euler step along the probability flow, order 1; `x` and `eps`: (B, ...)."""
    return x + slope(x, eps, s.sigma) * (t.lam - s.lam)


def heun(end: Tensor, first: Tensor, second: Tensor, s: Level, t: Level) -> Tensor:
    """Return `end` + h/2 (second - first), Heun's correction of Euler's `end` by the slopes at s and t, order 2.

    `end`, `first` and `second`: (B, ...).
    """
    return end + (second - first) * ((t.lam - s.lam) / 2)


def ddim(x_0: Tensor, eps: Tensor, s: Level, t: Level, eta: float = 0.0, z: Tensor | None = None) -> Tensor:
    """Return gamma_t x_0 + sqrt(sigma_t^2 - d^2) eps + d z (Song et al. 2021, DDIM, eq. 12), order 1.

    d = eta (sigma_t / sigma_s) sqrt(1 - gamma_s^2 / gamma_t^2), eta in [0, 1]: 0 is the probability flow, 1 the
    standard deviation of DDPM's posterior (eq. 16). `x_0`, `eps` and `z`: (B, ...); `z` is standard normal, None for
    eta 0.
    """
    d = eta * t.sigma / s.sigma * math.sqrt(1 - (s.gamma / t.gamma) ** 2)
    x = x_0 * t.gamma + eps * math.sqrt(t.sigma**2 - d**2)
    return x if z is None else x + z * d


def dpmpp_2m(x: Tensor, now: Estimate, before: Estimate | None, t: Level) -> Tensor:
    """Return (sigma_t / sigma_s) x + gamma_t (1 - exp(-h)) D (Lu et al. 2022, DPM-Solver++, algorithm 2), order 2.

    D = x_0 + (x_0 - x_0') h / 2h' extrapolates from x_0', the estimate `before`, one step of h' earlier. D = x_0
    without `before`. `x`: (B, ...); h > 0.
    """
    s = now.level
    decay = math.exp(s.lam - t.lam)
    return x * (t.sigma / s.sigma) + _extrapolated(now, before, t) * (t.gamma * (1 - decay))


def dpmpp_2m_sde(x: Tensor, now: Estimate, before: Estimate | None, t: Level, z: Tensor) -> Tensor:
    """Return (sigma_t / sigma_s) exp(-h) x + gamma_t (1 - exp(-2h)) D + sigma_t sqrt(1 - exp(-2h)) z.

    It is `dpmpp_2m` for the reverse SDE (Lu et al. 2022, DPM-Solver++, appendix, SDE-DPM-Solver++(2M)); D as there, `x`
    and the standard normal `z` (B, ...); h > 0.
    """
    s = now.level
    decay = math.exp(s.lam - t.lam)
    mean = x * (t.sigma / s.sigma * decay) + _extrapolated(now, before, t) * (t.gamma * (1 - decay**2))
    return mean + z * (t.sigma * math.sqrt(1 - decay**2))


def _extrapolated(now: Estimate, before: Estimate | None, t: Level) -> Tensor:
    """Return the estimate of x_0 in the middle of the step to t, on the line through the last two estimates."""
    if before is None:
        return now.x_0
    ratio = (t.lam - now.level.lam) / (now.level.lam - before.level.lam)                           # h / h'
    return now.x_0 + (now.x_0 - before.x_0) * (ratio / 2)


def unipc_corrected(x: Tensor, last: Estimate, before: Estimate | None, now: Estimate) -> Tensor:
    """Return the state at `now`, corrected with the estimate made there (Zhao et al. 2023, algorithm 5), order 3.

    It is the corrector of UniPC of order 2 with B(h) = exp(h) - 1 and data prediction; its predictor is `dpmpp_2m`.
    `x` is the state at `last`, where the step began; `before` is the estimate before `last`, None after the first step.
    x_t = (sigma_t / sigma_s) x + gamma_t (1 - exp(-h)) (x_0 + rho_1 D_1 + rho_2 D_2). D_1 is the slope to `before`,
    D_2 the difference to `now`, and rho solves [[1, 1], [r, 1]] rho = b with r = -h' / h, h > 0. `x`: (B, ...).
    """
    # right-hand side b
    s, t = last.level, now.level
    h = t.lam - s.lam
    new = now.x_0 - last.x_0
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    b_1 = phi_2 / phi_1
    # weighted differences
    if before is None:
        change = new / 2
    else:
        r = (before.level.lam - s.lam) / h
        b_2 = 2 * (phi_2 / -h - 0.5) / phi_1
        rho_1 = (b_2 - b_1) / (r - 1)
        change = (before.x_0 - last.x_0) * (rho_1 / r) + new * (b_1 - rho_1)
    return x * (t.sigma / s.sigma) - (last.x_0 + change) * (t.gamma * phi_1)
