"""Settings of `hfgen train tarflow`, and their recommended values."""

from dataclasses import dataclass
from typing import Any

from hfgen.training.engine.settings import AUTO, Auto, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.denoiser import ConditionSettings
from hfgen.training.settings.shared import EvaluationFields


@dataclass(kw_only=True)
class TarFlowSettings(EvaluationFields, ConditionSettings):
    """Train a normalizing flow of images (Zhai et al. 2025): causal transformers over patches, as an invertible map."""

    # data
    noise_std: Auto[float] = AUTO
    """Standard deviation of Gaussian noise that is added to dequantised pixels in [-1, 1] and that sampling removes.
    Samples look better with it; the likelihood is then that of noisy pixels."""

    # network
    patch_size: Auto[int] = AUTO
    """Side of the patches of pixels."""
    width: Auto[int] = AUTO
    """Features of each patch."""
    blocks: Auto[int] = AUTO
    """Invertible maps, which take the patches forwards and backwards in turn."""
    layers: Auto[int] = AUTO
    """Layers of the transformer of each map."""
    attention_head_dim: int = 32
    """Features of each attention head."""
    dropout: Auto[float] = AUTO
    """Share of activations dropped in training."""
    # optimisation
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    # saving
    preview_images: Auto[int] = AUTO
    """Images of each sample grid; 0 for no grids."""


def recommended(settings: TarFlowSettings, dataset: Shaped) -> TarFlowSettings:
    """Return the settings completed for the dataset: small images take under three minutes on two cores."""
    # choose the network
    side = max(dataset.shape[1:], default=0)
    values: dict[str, Any] = {
        "patch_size": patch_of(dataset), "width": 128, "blocks": 6, "layers": 2, "dropout": 0.0, "noise_std": 0.05,
    }  # fmt: skip
    if side < 16:
        values |= {"width": 96, "blocks": 4, "dropout": 0.1, "noise_std": 0.0}
    # choose the training
    values |= {"batch_size": 64, "learning_rate": 1e-3, "max_steps": 20_000, "preview_images": 64}
    if side < 16:
        values |= {"learning_rate": 2e-3, "max_steps": 1600}
    return filled(settings, values)


def patch_of(dataset: Shaped) -> int:
    """Return the side of patches: 2 for images below 16 pixels, else 4, if it divides the sides, or less."""
    most = 2 if max(dataset.shape[1:], default=0) < 16 else 4
    return max(p for p in (1, 2, 4) if p <= most and all(side % p == 0 for side in dataset.shape[1:]))


SPEC = SettingsSpec(TarFlowSettings, recommended)
