"""Noise schedules: the variances of the forward process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

A schedule is a function (num_train_timesteps, beta_start, beta_end) -> float64 tensor (T,), values in (0, 1). A new one
needs one function and one entry in `SCHEDULES`, under its name in diffusers' configurations.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from hfgen.checks import require_choice
from hfgen.errors import ConfigError
from hfgen.logging import warn

Betas = torch.Tensor
MAX_BETA = 0.999
"""Upper bound of betas that follow from alpha_bar."""


def linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> Betas:
    """Return betas evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020, section 4)."""
    return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)


def scaled_linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> Betas:
    """Return betas with evenly spaced square roots (Rombach et al. 2022)."""
    return linear(num_train_timesteps, math.sqrt(beta_start), math.sqrt(beta_end)).square()


def sigmoid(num_train_timesteps: int, beta_start: float, beta_end: float) -> Betas:
    """Return betas that rise from `beta_start` to `beta_end` along a sigmoid on [-6, 6] (Xu et al. 2022, GeoDiff)."""
    return torch.sigmoid(linear(num_train_timesteps, -6.0, 6.0)) * (beta_end - beta_start) + beta_start


def cosine(num_train_timesteps: int, beta_start: float, beta_end: float) -> Betas:
    """Return betas of alpha_bar(u) = cos^2(pi/2 (u + s) / (1 + s)), s = 0.008 (Nichol and Dhariwal 2021, eq. 17)."""
    return _from_alpha_bar(lambda u: torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square(), num_train_timesteps)


def laplace(num_train_timesteps: int, beta_start: float, beta_end: float) -> Betas:
    """Return betas of log-SNRs with a Laplace density (Hang et al. 2024), discretised as in diffusers."""

    def alpha_bar(u: torch.Tensor) -> torch.Tensor:
        side = torch.copysign(torch.ones_like(u), 0.5 - u)
        log_snr = -0.5 * side * torch.log(1 - 2 * (0.5 - u).abs() + 1e-6)
        return torch.sigmoid(log_snr).sqrt()

    return _from_alpha_bar(alpha_bar, num_train_timesteps)


SCHEDULES: dict[str, Callable[[int, float, float], Betas]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": cosine,
    "sigmoid": sigmoid,
    "laplace": laplace,
}


def _from_alpha_bar(alpha_bar: Callable[[torch.Tensor], torch.Tensor], num_train_timesteps: int) -> Betas:
    """Return beta_t = min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), 0.999) for t = 0 ... T - 1."""
    grid = alpha_bar(torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps)
    return (1 - grid[1:] / grid[:-1]).clamp(max=MAX_BETA)


def rescale_zero_terminal_snr(betas: Betas) -> Betas:
    """Return betas (T,) with last alpha_bar exactly 0 and first one unchanged (Lin et al. 2024, algorithm 1).

    sqrt(alpha_bar) is shifted by its last value and scaled to its first value. Raises ConfigError for fewer than two
    timesteps.
    """
    if len(betas) < 2:
        raise ConfigError("rescale_betas_zero_snr needs num_train_timesteps >= 2, got 1; set it to false")
    root = torch.cumprod(1 - betas, 0).sqrt()
    alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def make_betas(
    num_train_timesteps: int,
    schedule: str,
    beta_start: float,
    beta_end: float,
    trained_betas: np.ndarray | Sequence[float] | None = None,
    zero_terminal_snr: bool = False,
) -> Betas:
    """Return beta_0 ... beta_{T-1}, float64; `trained_betas`, if given, replace the named schedule.

    Raises ConfigError for an unknown schedule and for betas that are not finite and positive. A beta of 1 or more
    before the last timestep leaves no signal: the timesteps after it are NaN as in diffusers, with a warning.
    """
    if trained_betas is not None:
        name, betas = "trained_betas", torch.as_tensor(trained_betas, dtype=torch.float64).clone()
    else:
        require_choice("beta_schedule", schedule, SCHEDULES)
        name = f"{schedule!r} betas from beta_start to beta_end"
        betas = SCHEDULES[schedule](num_train_timesteps, beta_start, beta_end)
    _check(betas, name)
    return rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas


def _check(betas: Betas, name: str) -> None:
    if betas.ndim != 1 or len(betas) == 0:
        raise ConfigError(f"{name} must be a non-empty list of numbers, got shape {tuple(betas.shape)}")
    if not bool((betas.isfinite() & (betas > 0)).all()):
        raise ConfigError(f"{name} must be finite and > 0, got {betas.min():g} to {betas.max():g}")
    too_large = (betas[:-1] >= 1).nonzero()
    if len(too_large):
        warn(f"{name}: beta >= 1 from timestep {int(too_large[0])} on; results there are NaN")
