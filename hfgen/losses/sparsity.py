"""Penalties of active codes: pure functions on activities."""

import torch


def kl_to_rate(mean: torch.Tensor, rate: float) -> torch.Tensor:
    """Return KL(rate || mean) of Bernoulli distributions in nats, >= 0, in the shape of `mean` (Ng 2011, section 3).

    rate log(rate / mean) + (1 - rate) log((1 - rate) / (1 - mean)). `mean`: mean activity of each unit, in [0, 1],
    clipped 1e-6 away from 0 and 1 so that the result is finite. `rate`: desired activity, in (0, 1).
    """
    mean = mean.clamp(1e-6, 1 - 1e-6)
    off = 1 - rate
    return rate * (rate / mean).log() + off * (off / (1 - mean)).log()
