"""Settings of `hfgen train vq_autoencoder`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, Literal

from hfgen.training.engine.settings import AUTO, Auto
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.first_stage import FirstStageSettings, completed


@dataclass(kw_only=True)
class VQAutoencoderSettings(FirstStageSettings):
    """Train a discrete autoencoder of images: a grid of codes, from which images come back."""

    # network
    quantizer: Literal["vq", "fsq"] = "vq"
    """vq: the nearest of learned vectors; fsq: a grid of levels, without a codebook (Mentzer et al. 2024)."""
    num_codes: Auto[int] = AUTO
    """Vectors of the codebook (vq)."""
    code_dim: int = 8
    """Channels of a vector of the codebook (vq)."""
    levels: Auto[tuple[int, ...]] = AUTO
    """Levels of each channel (fsq); the number of codes is their product."""

    # losses
    commitment_weight: float = 0.25
    """Weight beta of |z - sg[e]|^2, which keeps the encoder near its codes (vq)."""
    codebook: Literal["ema", "gradient"] = "ema"
    """The codebook follows moving averages of the encoder's outputs, or the gradient of |sg[z] - e|^2 (vq)."""
    codebook_decay: float = 0.99
    """Decay of the moving averages, for each step (ema)."""
    dead_below: float = 0.1
    """Use of a code over the mean use of all codes, below which a random vector of the batch replaces it (ema)."""


def recommended(settings: VQAutoencoderSettings, dataset: Shaped) -> VQAutoencoderSettings:
    """Return the settings completed for the dataset; sides are halved once below 16 pixels, twice below 128."""
    # choose the sizes of the network
    side = max(dataset.shape[1:] or (1,))
    widths: tuple[int, ...] = (64, 128, 128, 256)
    if side < 16:
        widths = (32, 64)
    elif side < 64:
        widths = (16, 32, 64)
    elif side < 128:
        widths = (64, 128, 128)
    # choose the training
    values: dict[str, Any] = {"batch_size": 32, "block_out_channels": widths, "max_steps": 10_000}
    values |= {"learning_rate": 5e-4, "adversarial_weight": 0.5, "num_codes": 1024, "levels": (8, 5, 5, 5)}
    if side < 64:
        values |= {"learning_rate": 1e-3, "max_steps": 2000, "adversarial_weight": 0.0}
        values |= {"num_codes": 256, "levels": (8, 6, 5)}
    if side < 16:
        values |= {"batch_size": 64, "max_steps": 1500, "num_codes": 128, "levels": (5, 5, 5)}
    return completed(settings, dataset, values)


SPEC = SettingsSpec(VQAutoencoderSettings, recommended)
