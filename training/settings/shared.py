"""Fields that several recipes have."""

from dataclasses import dataclass
from typing import Literal

from hfgen.training.engine.settings import AUTO, Auto


@dataclass(kw_only=True)
class EvaluationFields:
    """Fields of a recipe that is evaluated on held-out images."""

    # evaluation
    eval_split: str | None = None
    """Split that the averaged weights are evaluated on whenever a grid is drawn, and at the end."""
    eval_dataset: str | None = None
    """Dataset of that split. Default: the one that is trained on; if it is given, the split's default is train."""


AdversarialLoss = Literal[
    "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "wasserstein_gp", "relativistic", "kl",
    "reverse_kl", "jensen_shannon", "pearson", "squared_hellinger"
]  # fmt: skip
"""Names in `hfgen.losses.adversarial.OBJECTIVES`."""


@dataclass(kw_only=True)
class AdversarialFields:
    """Fields of an adversarial recipe; their defaults depend on the loss and on the data."""

    # losses
    loss: Auto[Literal[AdversarialLoss, "began"]] = AUTO
    """Adversarial loss, of samples or of patches. Other defaults depend on it. kl, reverse_kl, jensen_shannon, pearson
    and squared_hellinger are f-divergences (Nowozin et al. 2016); began makes the discriminator an autoencoder
    (Berthelot et al. 2017)."""
    # optimisation
    discriminator_learning_rate: Auto[float] = AUTO
    """Peak learning rate of the discriminators; --learning-rate is the generators' and the default."""
    # losses
    gradient_penalty: Auto[float] = AUTO
    """Weight of the Wasserstein gradient penalty between reference and generated samples. For
    wasserstein_gp 10 (1 below 16 pixels)."""
    clip: Auto[float] = AUTO
    """Largest absolute value of the discriminators' weights, 0 for no bound. For wasserstein 0.01."""
    # optimisation
    max_grad_norm: float = 1e6
    """Gradients with a larger norm are scaled down to it."""
