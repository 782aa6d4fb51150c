"""The default settings of image translation, by pairs or not, and by size."""

from typing import TYPE_CHECKING, Any

from hfgen.data.unpaired import Unpaired
from hfgen.training.settings import filled

if TYPE_CHECKING:
    from hfgen.training.translation import TranslationSettings

COMMON: dict[str, Any] = {
    "loss": "least_squares",
    "generator": "resnet",
    "max_steps": 200_000,
    "batch_size": 1,
    "learning_rate": 2e-4,
    "width": 64,
    "blocks": 9,
    "downsamplings": 2,
    "discriminator_width": 64,
    "discriminator_layers": 3,
    "discriminator_norm": "instance",
    "cycle_weight": 10.0,
    "identity_weight": 0.5,
    "paired_weight": 0.0,
    "history": 50,
    "gradient_penalty": 0.0,
    "clip": 0.0,
}
"""Zhu et al. 2017, sections 4 and 7: 200 epochs of about 1,000 images; six blocks below 256 pixels."""

PAIRED: dict[str, Any] = {
    "loss": "non_saturating", "generator": "unet", "cycle_weight": 0.0, "identity_weight": 0.0, "paired_weight": 100.0,
    "history": 0,
}  # fmt: skip
"""Isola et al. 2017, sections 3 and 6."""

SMALL_IMAGES: dict[str, Any] = {
    "max_steps": 10_000, "batch_size": 4, "learning_rate": 1e-3, "width": 16, "blocks": 2, "downsamplings": 1,
    "discriminator_width": 32, "discriminator_layers": 2, "discriminator_norm": "spectral", "cycle_weight": 20.0,
}  # fmt: skip
"""For images below 64 pixels: narrow networks that keep half the resolution, patches of 34x34; 0.1 s a step. Instance
norm would take the contrast of such patches away, and faint traces of the other domain would pass for it."""

OF_LOSS: dict[str, dict[str, Any]] = {
    "wasserstein": {"clip": 0.01, "discriminator_norm": "none"},
    "wasserstein_gp": {"gradient_penalty": 10.0, "discriminator_norm": "layer"},
    "hinge": {"discriminator_norm": "spectral"},
}
"""The settings of each loss, as for other GANs."""


def recommended(settings: "TranslationSettings", dataset: Unpaired) -> "TranslationSettings":
    """Return the settings with every None replaced by what is recommended for the data and the loss."""
    height, width = dataset.shape[1:]
    values = COMMON | {"depth": min(8, *((side & -side).bit_length() - 1 for side in (height, width)))}
    if min(height, width) < 256:
        values |= {"blocks": 6}
    if min(height, width) < 64:
        values |= SMALL_IMAGES
    if dataset.shape_a[0] != dataset.shape_b[0]:                       # nothing of B can go through the network of A
        values |= {"identity_weight": 0.0}
    if settings.paired:
        values |= PAIRED
    loss = settings.loss or values["loss"]
    values |= OF_LOSS.get(loss, {})
    values["adversarial_weight"] = 2.0 if loss == "least_squares" else 1.0   # Zhu et al. have no 1/2 before the square
    settings = filled(settings, values)
    return filled(settings, {"discriminator_learning_rate": settings.learning_rate})
