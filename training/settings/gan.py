"""Settings of `hfgen train gan`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hfgen.models.choices import Norm
from hfgen.training.engine.defaults import IMAGES_AND_POINTS
from hfgen.training.engine.settings import AUTO, Auto, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.denoiser import CaptionSettings
from hfgen.training.settings.shared import AdversarialFields


@dataclass(kw_only=True)
class GANSettings(AdversarialFields, CaptionSettings):
    """Train a generative adversarial network (Goodfellow et al. 2014) on images or 2-D points."""

    before: ClassVar[dict[str, Any]] = {"wrong_conditions": 0.0}

    # optimisation
    discriminator_steps: Auto[int] = AUTO
    """Discriminator steps before each generator step, k."""
    betas: Auto[tuple[float, float]] = AUTO
    """Adam's decay rates of both optimisers."""
    discriminator_betas: Auto[tuple[float, float]] = AUTO
    """Adam's decay rates of the discriminator, where they differ."""

    # network
    network: Auto[Literal["mlp", "dcgan"]] = AUTO
    """Networks of points (mlp) or of images: dcgan (Radford et al. 2016)."""
    width: Auto[int] = AUTO
    """Channels next to the image, doubled at each stage; units of each layer for 2-D points."""
    layers: Auto[int] = AUTO
    """Hidden layers of the networks for 2-D points."""
    generator_extra_layers: Auto[int] = AUTO
    """3x3 convolutions after each stage of the generator."""
    discriminator_extra_layers: Auto[int] = AUTO
    """3x3 convolutions after each stage of the discriminator."""
    base_size: Auto[int] = AUTO
    """Pixels a side where the generator starts and the discriminator ends, at least."""
    latent_dim: Auto[int] = AUTO
    """Dimensions of the latent z."""
    generator_norm: Auto[Norm] = AUTO
    """Normalisation in the generator."""
    discriminator_norm: Auto[Norm] = AUTO
    """Normalisation in the discriminator; layer, none and spectral make it a critic."""
    pack: Auto[int] = AUTO
    """Samples that the discriminator judges together, against mode collapse (PacGAN)."""
    frequencies: Auto[int] = AUTO
    """Random waves of 2-D points that their discriminator sees beside the points."""
    minibatch_stddev: Auto[int] = AUTO
    """Samples in a group whose standard deviation the discriminator sees; 0 for none."""

    # losses
    r1: Auto[float] = AUTO
    """Weight of the zero-centred gradient penalty on real samples."""
    r2: Auto[float] = AUTO
    """Weight of the zero-centred gradient penalty on generated samples."""
    penalty_end: Auto[float] = AUTO
    """Factor of the weights of R1 and R2 at the last step, reached exponentially; 1 keeps them constant."""
    penalty_every: Auto[int] = AUTO
    """Discriminator steps from one evaluation of R1 and R2, with that many times the weight, to the next."""
    wrong_conditions: Auto[float] = AUTO
    """Share of real samples with a wrong class or caption among the discriminator's fakes (Reed et al. 2016). Default:
    0.5 for images with classes or captions (0 for wasserstein and wasserstein_gp)."""
    stop_on_collapse: bool = False
    """Save and stop where the generator has collapsed, the discriminator has won, or samples stay far from the data,
    instead of a warning. All are verdicts on some 300 steps in a row."""


POINT_NETWORKS = ("mlp",)
"""Choices of `network` for points; the others are for images."""

COMMON: dict[str, Any] = {
    "network": "dcgan",
    "loss": "non_saturating",
    "max_steps": 20_000,
    "batch_size": 64,
    "learning_rate": 2e-4,
    "betas": (0.5, 0.999),
    "discriminator_steps": 1,
    "width": 64,
    "layers": 3,
    "latent_dim": 100,
    "base_size": 4,
    "generator_extra_layers": 0,
    "discriminator_extra_layers": 0,
    "generator_norm": "batch",
    "discriminator_norm": "batch",
    "pack": 1,
    "minibatch_stddev": 0,
    "frequencies": 0,
    "gradient_penalty": 0.0,
    "r1": 0.0,
    "r2": 0.0,
    "penalty_end": 1.0,
    "penalty_every": 1,
    "clip": 0.0,
    "wrong_conditions": 0.0,
}
"""Radford et al. 2016, section 3."""

OF_LOSS: dict[str, dict[str, Any]] = {
    "wasserstein": {"clip": 0.01, "learning_rate": 5e-5, "discriminator_steps": 5},
    "wasserstein_gp": {
        "gradient_penalty": 10.0, "learning_rate": 1e-4, "betas": (0.0, 0.9), "discriminator_steps": 5,
        "discriminator_norm": "layer",
    },
    "hinge": {"discriminator_norm": "spectral"},
    "relativistic": {"discriminator_norm": "none", "betas": (0.0, 0.99), "r1": 1.0, "r2": 1.0},
}  # fmt: skip
"""The settings of each loss: Arjovsky et al. 2017, algorithm 1; Gulrajani et al. 2017, algorithm 1; Miyato et al. 2018,
section 4; Huang et al. 2024, section 4."""

BOUNDED = ("minimax", "non_saturating", "least_squares", "hinge", "relativistic")
"""Losses in which the term of real samples with wrong conditions has a bound. Under a gradient penalty, which holds
between real and generated samples of one condition, a critic lowers it for ever."""

POINTS: dict[str, Any] = {
    "network": "mlp",
    "generator_norm": "none", "discriminator_norm": "none", "latent_dim": 2, "width": 128, "batch_size": 256,
}  # fmt: skip
"""For points: small networks without normalisation."""

RECOMMENDED_POINTS: dict[str, Any] = {
    "network": "mlp",
    "loss": "relativistic", "learning_rate": 2e-3, "betas": (0.0, 0.99), "frequencies": 32,
    "r1": 1.0, "r2": 1.0, "penalty_end": 1e-4, "penalty_every": 4,
}  # fmt: skip
"""The recommended recipe for points. Strong penalties at first let every mode be found; as they fade, and the learning
rate with them, the discriminator may become steep enough to take away the samples between the modes; the waves let it
see how wide a mode is."""

SMALL_IMAGES: dict[str, Any] = {
    "max_steps": 4000, "learning_rate": 2e-3, "betas": (0.0, 0.99), "width": 32, "latent_dim": 64, "base_size": 2,
    "generator_extra_layers": 1, "minibatch_stddev": 4,
}  # fmt: skip
"""For images below 16 pixels, such as digits: a narrow pair, fast learning, a generator deeper than its critic."""

CAPTIONED: dict[str, Any] = {
    "max_steps": 6000, "batch_size": 32, "learning_rate": 1e-3, "betas": (0.0, 0.99), "width": 32, "latent_dim": 32,
    "minibatch_stddev": 4,
}  # fmt: skip
"""For captioned images from 16 to 32 pixels, such as shapes: a narrow pair that learns fast."""

SMALL_IMAGES_WGAN_GP: dict[str, Any] = {
    "max_steps": 3500, "betas": (0.0, 0.9), "discriminator_steps": 2, "discriminator_learning_rate": 4e-3,
    "discriminator_norm": "none", "minibatch_stddev": 0, "gradient_penalty": 1.0,
}  # fmt: skip


def recommended(settings: GANSettings, dataset: Shaped) -> GANSettings:
    """Return the settings completed for the dataset and the loss."""
    # choose values for the loss
    loss = settings.loss
    values = COMMON | OF_LOSS.get(loss or "", {})
    if loss:
        values["loss"] = loss
    # choose values for the data
    if len(dataset.shape) == 1:
        values |= POINTS
        if loss is None:
            values |= RECOMMENDED_POINTS
    elif max(dataset.shape[1:]) < 16:
        values |= SMALL_IMAGES
        if loss == "wasserstein_gp":
            values |= SMALL_IMAGES_WGAN_GP
    elif settings.captions and loss is None and max(dataset.shape[1:]) <= 32:
        values |= CAPTIONED
    # choose values for conditions
    conditional = settings.class_conditional or settings.captions
    if conditional and len(dataset.shape) == 3 and values["loss"] in BOUNDED:
        values["wrong_conditions"] = 0.5
    # choose values for the discriminator, by default those of the generator
    settings = filled(settings, values)
    own = {"discriminator_learning_rate": settings.learning_rate, "discriminator_betas": settings.betas}
    return filled(settings, own)


SPEC = SettingsSpec(GANSettings, recommended, kinds=IMAGES_AND_POINTS)
