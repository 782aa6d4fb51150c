"""Fields and optimisers of recipes in which generators and discriminators play against each other."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hfgen.training.engine.settings import AUTO, Auto


@dataclass(kw_only=True)
class AdversarialFields:
    """Fields of an adversarial recipe; their defaults depend on the loss and on the data."""

    loss: Auto[Literal[
        "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "wasserstein_gp", "relativistic"
    ]] = AUTO  # fmt: skip
    """Adversarial loss, of samples or of patches. Other defaults depend on it."""
    discriminator_learning_rate: Auto[float] = AUTO
    """Peak learning rate of the discriminators; --learning-rate is the generators' and the default."""
    gradient_penalty: Auto[float] = AUTO
    """Weight of the Wasserstein gradient penalty between reference and generated samples. For
    wasserstein_gp 10 (1 below 16 pixels)."""
    clip: Auto[float] = AUTO
    """Largest absolute value of the discriminators' weights, 0 for no bound. For wasserstein 0.01."""
    max_grad_norm: float = 1e6
    """Gradients with a larger norm are scaled down to it."""


def optimizer(
    loss: str, parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Return Adam, or RMSprop for clipped critics and their generators: momentum harms those (Arjovsky et al. 2017,
    section 4)."""
    if loss == "wasserstein":
        return torch.optim.RMSprop(parameters, lr=rate)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)
