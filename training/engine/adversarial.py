"""Fields and optimisers of recipes in which generators and discriminators play against each other."""

from collections.abc import Iterable

import torch
from torch import nn


def optimizer(
    loss: str, parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Return Adam, or RMSprop for clipped critics and their generators: momentum harms those (Arjovsky et al. 2017,
    section 4)."""
    if loss == "wasserstein":
        return torch.optim.RMSprop(parameters, lr=rate)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)
