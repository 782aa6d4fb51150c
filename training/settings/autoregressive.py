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
    patch_size: int = 1
    """Side of the patches of pixels that are one entry each, for few levels: levels^(pixels of a patch) values."""
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


def recommended(settings: AutoregressiveSettings, dataset: Shaped) -> AutoregressiveSettings:
    """Return the settings completed for the dataset: small images take under three minutes on two cores."""
    # choose the network
    shape = dataset.shape
    codes = settings.autoencoder is not None
    side = max(shape[1:], default=0)
    short = codes or side < 16                                                           # few entries
    transformer = short or settings.objective == "masked"
    values: dict[str, Any] = {"network": "transformer" if transformer else "pixel_cnn", "dropout": 0.0}
    network = settings.network or values["network"]
    values |= {"width": 128, "layers": 6}
    if network == "pixel_cnn":
        values |= {"width": 64, "layers": 8}
    if short and side < 16:
        values |= {"width": 96, "layers": 4}
    # choose the training
    values |= {"batch_size": 32, "learning_rate": 1e-3, "max_steps": 20_000, "preview_images": 64}
    if short:
        values |= {"batch_size": 64, "learning_rate": 2e-3, "max_steps": 3000}
    if side < 16 and not codes and settings.objective == "causal":                       # soon learnt by heart
        values |= {"width": 64, "dropout": 0.1, "max_steps": 1000}
    if not short:
        values |= {"preview_images": 16}
    return filled(settings, values)


SPEC = SettingsSpec(AutoregressiveSettings, recommended)
