"""Settings of `hfgen train latent_diffusion`, and their recommended values."""

from dataclasses import dataclass
from typing import Any

from hfgen.training.engine.settings import AUTO, Auto, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.ddpm import DDPMSettings
from hfgen.training.settings.denoiser import upper_levels


@dataclass(kw_only=True)
class LatentDiffusionSettings(DDPMSettings):
    """Train a diffusion model in the latents of an autoencoder, unconditional or conditioned on class or caption."""

    # network
    autoencoder: str
    """Run, model folder or Hub id of the autoencoder (hfgen train autoencoder_kl), or of a pipeline that has one, or of
    an AutoencoderKL alone; its weights are not trained."""
    block_out_channels: Auto[tuple[int, ...]] = AUTO
    """Channels of the U-Net at each resolution, finest first, as many as the sides can be halved, plus one."""


def recommended(settings: LatentDiffusionSettings, dataset: Shaped) -> LatentDiffusionSettings:
    """Return the settings completed for the latents: at most three resolutions, as far as sides can be halved."""
    # choose the size of the network
    side = max(dataset.shape[1:])
    possible = min((s & -s).bit_length() for s in dataset.shape[1:])                 # levels: one more than halvings
    widths: tuple[int, ...] = (128, 256, 256)
    if side < 8:
        widths = (32, 64)
    elif side < 32:
        widths = (32, 64, 64)
    widths = widths[:possible]
    levels = len(settings.block_out_channels or widths)
    # choose the training
    values: dict[str, Any] = {"batch_size": 64, "block_out_channels": widths, "attention_levels": upper_levels(levels)}
    values |= {"prediction_type": "v_prediction", "learning_rate": 5e-4, "max_steps": 20_000}
    values |= {"preview_steps": 50, "layers_per_block": 1 if 8 <= side < 32 else 2}
    if side < 32:
        values |= {"learning_rate": 1e-3, "max_steps": 2600}
    if side < 8:
        values |= {"learning_rate": 2e-3}
    return filled(settings, values)


KINDS = {"latents of 32x32": (4, 32, 32), "16x16": (4, 16, 16), "4x4": (4, 4, 4)}

SPEC = SettingsSpec(LatentDiffusionSettings, recommended, kinds=KINDS)
