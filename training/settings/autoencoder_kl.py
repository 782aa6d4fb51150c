"""Settings of `hfgen train autoencoder_kl`, and their recommended values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfgen.training.engine.settings import AUTO, Auto, Settings, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.shared import EvaluationFields

SMALLEST = 3
"""Pixels a side that the discriminator's stride of 2^layers leaves at least."""


@dataclass(kw_only=True)
class AutoencoderKLSettings(EvaluationFields, Settings):
    """Train the autoencoder of latent diffusion on images: reconstruction, small KL, adversarial loss on patches."""

    # network
    block_out_channels: Auto[tuple[int, ...]] = AUTO
    """Channels at each resolution, finest first; each but the first halves the sides once more."""
    layers_per_block: int = 1
    """ResNet blocks at each resolution."""
    latent_channels: int = 4
    """Channels of the latents."""

    # losses
    reconstruction: Auto[Literal["l1", "l2"]] = AUTO
    """Error of the reconstruction: mean of |x - x'| or of (x - x')^2. With a discriminator l1, else l2."""
    perceptual: Path | None = None
    """File of safetensors with the weights of LPIPS on VGG-16, under the names of the `lpips` library."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS (Zhang et al. 2018), where --perceptual is given."""
    kl_weight: float = 1e-6
    """Weight of KL(q(z|x) || N(0, I)), in nats over the number of pixel values of an image."""
    adversarial_weight: Auto[float] = AUTO
    """Weight of the adversarial loss, on top of the adaptive one (Esser et al. 2021, eq. 7); 0 for no discriminator:
    images below 64 pixels, whose sides are halved once, are sharp without."""
    adversarial_start: int | None = None
    """Steps before the discriminator takes part; half of all."""
    loss: Literal["hinge", "non_saturating", "least_squares", "relativistic"] = "hinge"
    """Adversarial loss of the discriminator and the decoder."""
    # optimisation
    discriminator_learning_rate: Auto[float] = AUTO
    """Peak learning rate of the discriminator."""
    # network
    discriminator_width: int = 64
    """Channels of the discriminator's first layer."""
    discriminator_layers: Auto[int] = AUTO
    """Layers of the discriminator that halve the sides; at least 3 pixels are left."""


def recommended(settings: AutoencoderKLSettings, dataset: Shaped) -> AutoencoderKLSettings:
    """Return the settings completed for the dataset; sides are halved once below 64 pixels, twice below 128."""
    # choose the sizes of the networks
    sides = dataset.shape[1:] or (1,)
    side = max(sides)
    widths: tuple[int, ...] = (64, 128, 128, 128)
    if side < 16:
        widths = (32, 64)
    elif side < 64:
        widths = (16, 32)
    elif side < 128:
        widths = (64, 128, 128)
    possible = min((side & -side).bit_length() for side in sides)                    # levels: one more than halvings
    layers = max((n for n in (1, 2, 3) if SMALLEST * 2**n <= min(sides)), default=1)
    # choose the training
    values: dict[str, Any] = {"batch_size": 32, "block_out_channels": widths[:possible], "max_steps": 10_000}
    values |= {"learning_rate": 5e-4, "adversarial_weight": 0.5, "discriminator_learning_rate": 2e-4,
               "discriminator_layers": layers}  # fmt: skip
    if side < 64:
        values |= {"learning_rate": 1e-3, "max_steps": 1500, "adversarial_weight": 0.0}
    if side < 16:
        values |= {"batch_size": 64, "max_steps": 2000}
    # choose the error, and the start of the discriminator
    values["reconstruction"] = "l1" if filled(settings, values).adversarial_weight else "l2"
    if settings.budget is None:                                                      # else the steps are still to come
        values["adversarial_start"] = (settings.max_steps or values["max_steps"]) // 2
    return filled(settings, values)


SPEC = SettingsSpec(AutoencoderKLSettings, recommended)
