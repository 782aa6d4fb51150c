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
    """Adversarial loss, of samples or of patches. Other defaults depend on it. Default: non_saturating for images,
    relativistic for points; for translation least_squares (non_saturating for pairs)."""
    discriminator_learning_rate: Auto[float] = AUTO
    """Peak learning rate of the discriminators. Default: --learning-rate, which is the generators'."""
    gradient_penalty: Auto[float] = AUTO
    """Weight of the Wasserstein gradient penalty between reference and generated samples. Default: 10 for
    wasserstein_gp (1 for images below 16 pixels), else 0."""
    clip: Auto[float] = AUTO
    """Largest absolute value of the discriminators' weights, 0 for no bound. Default: 0.01 for wasserstein, else 0."""
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
