"""What a GAN is trained with where the user has not said otherwise: by the kind of data and by the loss."""

from typing import TYPE_CHECKING, Any

from hfgen.data.dataset import Dataset
from hfgen.training.settings import filled

if TYPE_CHECKING:
    from hfgen.training.gan import GANSettings

COMMON: dict[str, Any] = {
    "max_steps": 20_000,
    "batch_size": 64,
    "width": 64,
    "layers": 3,
    "frequencies": 0,
    "discriminator_steps": 1,
    "learning_rate": 2e-4,
    "betas": (0.5, 0.999),
    "generator_norm": "batch",
    "discriminator_norm": "batch",
    "extra_layers": 0,
    "base_size": 4,
    "latent_dim": 100,
    "pack": 1,
    "minibatch_stddev": 0,
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
"""What goes with a loss: Arjovsky et al. 2017, algorithm 1; Gulrajani et al. 2017, algorithm 1; Miyato et al. 2018."""


IMAGES: dict[str, Any] = {"loss": "relativistic", **OF_LOSS["relativistic"]}
"""The recommended recipe for images."""

IN_PLANE: dict[str, Any] = {
    "generator_norm": "none", "discriminator_norm": "none", "latent_dim": 2, "width": 128, "layers": 3,
    "batch_size": 256,
}  # fmt: skip
"""For points: small networks without normalisation."""

TOY: dict[str, Any] = {
    "loss": "relativistic", "learning_rate": 2e-3, "betas": (0.0, 0.99), "frequencies": 32,
    "r1": 1.0, "r2": 1.0, "penalty_end": 1e-4, "penalty_every": 4,
}  # fmt: skip
"""The recommended recipe for points. Strong penalties at first let every mode be found; as they fade, and the learning
rate with them, the discriminator may become steep enough to take away the samples between the modes; the waves let it
see how wide a mode is."""


def recommended(settings: "GANSettings", dataset: Dataset) -> "GANSettings":
    """Return the settings with every None replaced by what is recommended for the dataset and the loss."""
    in_plane = len(dataset.shape) == 1
    values = COMMON | (IN_PLANE if in_plane else {})
    if settings.loss is None:
        values |= TOY if in_plane else IMAGES
    else:
        values |= OF_LOSS.get(settings.loss, {})
    settings = filled(settings, values)
    own = {"discriminator_learning_rate": settings.learning_rate, "discriminator_betas": settings.betas}
    return filled(settings, own)
