"""The default settings of a GAN, by the kind of data and by the loss."""

from typing import TYPE_CHECKING, Any

from hfgen.data.dataset import Dataset
from hfgen.training.settings import filled

if TYPE_CHECKING:
    from hfgen.training.gan import GANSettings

COMMON: dict[str, Any] = {
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

POINTS: dict[str, Any] = {
    "generator_norm": "none", "discriminator_norm": "none", "latent_dim": 2, "width": 128, "batch_size": 256,
}  # fmt: skip
"""For points: small networks without normalisation."""

RECOMMENDED_POINTS: dict[str, Any] = {
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
"""For images below 16 pixels, such as digits: a narrow pair, fast learning, a generator deeper than its judge."""

SMALL_IMAGES_WGAN_GP: dict[str, Any] = {
    "max_steps": 3500, "betas": (0.0, 0.9), "discriminator_steps": 2, "discriminator_learning_rate": 4e-3,
    "discriminator_norm": "none", "minibatch_stddev": 0, "gradient_penalty": 1.0,
}  # fmt: skip


def recommended(settings: "GANSettings", dataset: Dataset) -> "GANSettings":
    """Return the settings with every None replaced by what is recommended for the dataset and the loss."""
    loss = settings.loss
    values = COMMON | OF_LOSS.get(loss or "", {}) | ({"loss": loss} if loss else {})
    if len(dataset.shape) == 1:
        values |= POINTS | (RECOMMENDED_POINTS if loss is None else {})
    elif max(dataset.shape[1:]) < 16:
        values |= SMALL_IMAGES | (SMALL_IMAGES_WGAN_GP if loss == "wasserstein_gp" else {})
    settings = filled(settings, values)
    own = {"discriminator_learning_rate": settings.learning_rate, "discriminator_betas": settings.betas}
    return filled(settings, own)
