"""Settings of `hfgen train autoregressive`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, Literal

from hfgen.training.engine.settings import AUTO, Auto, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.denoiser import ConditionSettings
from hfgen.training.settings.shared import EvaluationFields


@dataclass(kw_only=True)
class AutoregressiveSettings(EvaluationFields, ConditionSettings):
    """Train an autoregressive model of images: p(x) is the product of p(x_i | x_1, ..., x_(i-1)) over all entries."""

    # data
    levels: int | None = None
    """Even grey levels, to which pixels are rounded. Default: those of the data (2 with --binarise)."""
    binarise: bool = False
    """Draw pixels black or white anew at each step, with the probability of their brightness."""
    patch_size: Auto[int] = AUTO
    """Side of the patches of pixels that are one entry each, for few levels: levels^(pixels of a patch) values. 2 for
    binarised grey images of 16 pixels and more, else 1."""
    autoencoder: str | None = None
    """Run, model folder or Hub id of a discrete autoencoder (hfgen train vq_autoencoder), whose codes are the entries;
    its weights are not trained."""

    # losses
    objective: Literal["causal", "masked"] = "causal"
    """Predict each entry from those before it, or masked entries from all others (MaskGIT, Chang et al. 2022), which
    draws images in a few parallel steps and has no likelihood."""

    # network
    network: Auto[Literal["transformer", "pixel_cnn"]] = AUTO
    """Transformer with causal attention (Chen et al. 2020), or convolutions of the pixels above and to the left (van
    den Oord et al. 2016), which are for pixels only."""
    width: Auto[int] = AUTO
    """Features of each entry."""
    layers: Auto[int] = AUTO
    """Transformer blocks, or layers of gated convolutions."""
    attention_head_dim: int = 32
    """Features of each attention head."""
    positions: Literal["learned", "rotary"] = "rotary"
    """Positions of the transformer: an embedding of each (Chen et al. 2020), or rotations of queries and keys by row
    and column (Su et al. 2021)."""
    tie_weights: bool = False
    """Predict with the weights of the embedding of entries."""
    dropout: Auto[float] = AUTO
    """Share of activations dropped in training."""
    # optimisation
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    # saving
    preview_images: Auto[int] = AUTO
    """Images of each sample grid; 0 for no grids."""


SMALL_IMAGES: dict[str, Any] = {
    "network": "transformer", "width": 64, "layers": 4, "dropout": 0.1, "learning_rate": 2e-3, "max_steps": 1000,
}  # fmt: skip
"""For images below 16 pixels, such as digits, which are soon learnt by heart."""

MASKED_SMALL_IMAGES: dict[str, Any] = SMALL_IMAGES | {"width": 96, "dropout": 0.0, "max_steps": 3000}

CODES: dict[str, Any] = {
    "network": "transformer", "width": 128, "layers": 6, "learning_rate": 2e-3, "max_steps": 3000,
}  # fmt: skip
"""For the codes of a discrete autoencoder."""

PATCHES: dict[str, Any] = CODES | {"patch_size": 2, "max_steps": 1800, "preview_images": 16}
"""For binarised grey images: with patches of 2 x 2 pixels, 16 values each, an image has a quarter of the entries."""

PIXELS: dict[str, Any] = {
    "network": "transformer", "width": 128, "layers": 6, "batch_size": 32, "preview_images": 16,
}  # fmt: skip
"""For the pixels of all other images, by a transformer."""

PIXEL_CNN: dict[str, Any] = PIXELS | {"network": "pixel_cnn", "width": 64, "layers": 8}
"""For the pixels of all other images, by convolutions."""

COMMON: dict[str, Any] = {
    "patch_size": 1, "dropout": 0.0, "batch_size": 64, "learning_rate": 1e-3, "max_steps": 20_000, "preview_images": 64,
}  # fmt: skip


def recommended(settings: AutoregressiveSettings, dataset: Shaped) -> AutoregressiveSettings:
    """Return the settings completed for the dataset: small images take under three minutes on two cores."""
    return filled(settings, COMMON | of_entries(settings, dataset.shape))


def of_entries(settings: AutoregressiveSettings, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the recommended values for entries of one kind: codes, patches, or pixels of images of a shape."""
    masked = settings.objective == "masked"
    if settings.autoencoder is not None:
        return CODES
    if max(shape[1:], default=0) < 16:
        return MASKED_SMALL_IMAGES if masked else SMALL_IMAGES
    if in_patches(settings, shape):
        return PATCHES
    if masked or settings.network == "transformer":
        return PIXELS
    return PIXEL_CNN


def in_patches(settings: AutoregressiveSettings, shape: tuple[int, ...]) -> bool:
    """Return whether patches of 2 x 2 pixels are recommended: for binarised grey images, but not for a PixelCNN."""
    grey = shape[0] == 1 and not any(side % 2 for side in shape[1:])
    return settings.binarise and grey and settings.network != "pixel_cnn" and settings.patch_size in (None, 2)


SMALLER: tuple[dict[str, Any], ...] = ({"width": 32, "layers": 3}, {"width": 64, "layers": 4})
"""Networks for images of 16 pixels and more where time is short."""


def smaller(settings: AutoregressiveSettings, dataset: Shaped) -> list[AutoregressiveSettings]:
    """Return the settings with each network that is smaller than the recommended one, the smallest first.

    None for codes and images below 16 pixels, nor where the settings name a size of the network.
    """
    chosen = settings.width is not None or settings.layers is not None
    if chosen or settings.autoencoder is not None or max(dataset.shape[1:], default=0) < 16:
        return []
    return [recommended(filled(settings, values), dataset) for values in SMALLER]


SPEC = SettingsSpec(AutoregressiveSettings, recommended, smaller)
