"""Classifier-free guidance (Ho and Salimans 2021): conditional minus unconditional prediction, in one evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgen.checks import require, require_number


@dataclass(frozen=True)
class Guide:
    """Classifier-free guidance of one call.

    `cond` and `uncond` are keyword arguments of the network: the conditions, and their replacements in the
    unconditional prediction. `scale`, `interval` and `rescale` are those of the functions below.
    """

    cond: dict[str, Tensor | None]
    uncond: dict[str, Tensor | None]
    scale: float
    interval: tuple[float, float]
    rescale: float


def guided(
    predict: Callable[..., Tensor],
    x: Tensor,
    cond: dict[str, Tensor | None],
    uncond: dict[str, Tensor | None],
    scale: float,
    rescale: float = 0.0,
) -> Tensor:
    """Return u + w (c - u), w = `scale` (Ho and Salimans 2021, eq. 6, with 1 + their w), shaped like x (B, C, ...).

    c = predict(x, **cond) and u = predict(x, **uncond) come from one call with 2 B rows. At scale 1 only c is computed.
    `rescale` in [0, 1] interpolates towards the prediction with c's standard deviation in each sample (Lin et al. 2023,
    eq. 15 and 16), against the overexposure of large scales. Channels beyond those of x, a learned variance, are c's.
    """
    if scale == 1:
        return predict(x, **cond)
    # both predictions
    both = {name: joined(uncond[name], value) for name, value in cond.items()}
    u, whole = predict(torch.cat([x, x]), **both).chunk(2)
    u, c, variance = u[:, : x.shape[1]], whole[:, : x.shape[1]], whole[:, x.shape[1] :]
    # their mixture
    mixture = mixed(u, c, scale)
    if rescale != 0:
        mixture = rescaled(mixture, c, rescale)
    return torch.cat([mixture, variance], 1)


def rescaled(mixture: Tensor, c: Tensor, rescale: float) -> Tensor:
    """Return phi m std(c) / std(m) + (1 - phi) m, m = `mixture`, phi = `rescale` (Lin et al. 2023, eq. 15 and 16).

    phi is in [0, 1]. `mixture` and `c` (B, ...) have one shape; standard deviations are those of each sample.
    """
    dims = tuple(range(1, c.ndim))
    ratio = c.std(dims, keepdim=True) / mixture.std(dims, keepdim=True).clamp_min(1e-12)
    return mixture * (rescale * ratio + (1 - rescale))


def scale_at(scale: float, interval: tuple[float, float], t: float, T: int) -> float:
    """Return the guidance scale at timestep t: `scale` where t / (T - 1) is in `interval`, 1 (no guidance) elsewhere.

    Guidance at some noise levels only (Kynkaanniemi et al. 2024, section 3). `interval` is (low, high) in [0, 1], both
    ends included; 1 is pure noise.
    """
    low, high = interval
    return scale if low <= t / max(1, T - 1) <= high else 1.0


def check_guidance(scale: Any, interval: Any, rescale: Any) -> None:
    """Raise ConfigError or ConfigTypeError, naming the argument, for a value outside its range."""
    require_number("guidance_scale", scale, 0, 1e3)
    require_number("guidance_rescale", rescale, 0, 1)
    # the interval is two numbers in order
    pair = isinstance(interval, list | tuple) and len(interval) == 2
    numbers = pair and all(isinstance(end, int | float) and not isinstance(end, bool) for end in interval)
    ordered = numbers and 0 <= interval[0] <= interval[1] <= 1
    require(ordered, "guidance_interval", interval, "(low, high) with 0 <= low <= high <= 1")


def mixed(u: Tensor, c: Tensor, scale: float) -> Tensor:
    """Return u + w (c - u), w = `scale`, of an unconditional and a conditional prediction of one shape."""
    return u + scale * (c - u)


def joined(uncond: Tensor | None, cond: Tensor | None) -> Tensor | None:
    """Return the rows of `uncond`, then those of `cond`, (2 B, ...); None if one of them is None."""
    return None if cond is None or uncond is None else torch.cat([uncond, cond])
