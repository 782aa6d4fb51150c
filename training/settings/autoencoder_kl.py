"""Settings of `hfgen train autoencoder_kl`, and their recommended values."""

from dataclasses import dataclass
from typing import Any

from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.first_stage import FirstStageSettings, completed


@dataclass(kw_only=True)
class AutoencoderKLSettings(FirstStageSettings):
    """Train the autoencoder of latent diffusion on images: reconstruction, small KL, adversarial loss on patches."""

    # network
    latent_channels: int = 4
    """Channels of the latents."""

    # losses
    kl_weight: float = 1e-6
    """Weight of KL(q(z|x) || N(0, I)), in nats over the number of pixel values of an image."""


def recommended(settings: AutoencoderKLSettings, dataset: Shaped) -> AutoencoderKLSettings:
    """Return the settings completed for the dataset; sides are halved once below 64 pixels, twice below 128."""
    # choose the sizes of the network
    side = max(dataset.shape[1:] or (1,))
    widths: tuple[int, ...] = (64, 128, 128, 128)
    if side < 16:
        widths = (32, 64)
    elif side < 64:
        widths = (16, 32)
    elif side < 128:
        widths = (64, 128, 128)
    # choose the training
    values: dict[str, Any] = {"batch_size": 32, "block_out_channels": widths, "max_steps": 10_000}
    values |= {"learning_rate": 5e-4, "adversarial_weight": 0.5}
    if side < 64:
        values |= {"learning_rate": 1e-3, "max_steps": 1500, "adversarial_weight": 0.0}
    if side < 16:
        values |= {"batch_size": 64, "max_steps": 2000}
    return completed(settings, dataset, values)


SPEC = SettingsSpec(AutoencoderKLSettings, recommended)
