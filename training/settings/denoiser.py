"""Settings of the denoiser that three recipes share, and their recommended values."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from hfgen.losses.choices import PredictionType
from hfgen.training.engine.settings import AUTO, GRID_IMAGES, Auto, Settings, filled
from hfgen.training.engine.spec import Shaped


@dataclass(kw_only=True)
class CaptionSettings(Settings):
    """Fields of the conditions: classes and captions."""

    # conditions
    class_conditional: bool = False
    """Condition the network on the dataset's labels."""
    captions: bool = False
    """Condition the network on the dataset's captions, through a text encoder."""
    caption_column: str | None = None
    """Column that holds the captions, with --captions; "caption" if not given."""
    text_encoder: str | None = None
    """Folder or Hub id of a CLIP text encoder and tokenizer, or of a pipeline that has them, which are not trained; by
    default a small encoder is built for the words of the captions and trained along."""
    text_width: int = 128
    """Features of each token of the text encoder that is built."""
    text_layers: int = 2
    """Layers of the text encoder that is built."""
    max_words: int = 4096
    """Most frequent words of the captions that are one token each."""


@dataclass(kw_only=True)
class ConditionSettings(CaptionSettings):
    """Fields of conditions that are left out at times, so that samples can be guided."""

    # conditions
    condition_dropout: float = 0.1
    """Share of samples whose class or caption is left out, which guidance needs (Ho and Salimans 2021)."""


@dataclass(kw_only=True)
class DenoiserSettings(ConditionSettings):
    """Fields of the network that sees the noise, and of its optimiser."""

    # network
    block_out_channels: Auto[tuple[int, ...]] = AUTO
    """Channels of the U-Net at each resolution, finest first; for 2-D points the last is the width of the MLP."""
    layers_per_block: Auto[int] = AUTO
    """ResNet blocks at each resolution; for 2-D points the residual blocks of the MLP."""
    attention_levels: Auto[tuple[int, ...]] = AUTO
    """Resolutions with attention, 0 being the finest; the middle always has it. All but the finest for captions."""
    attention_head_dim: int = 32
    """Channels of each attention head."""
    time_embedding_type: Literal["positional", "fourier"] = "positional"
    """Features of the timestep, for images: sines at geometric frequencies (positional), or random Fourier features,
    sines at fixed random frequencies (fourier)."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    """Conditioning of the residual blocks on the timestep and the class, for images: their embedding is added
    (default), or it scales and shifts the normalisation, which is adaptive group normalisation (scale_shift)."""
    prediction_type: Auto[PredictionType] = AUTO
    """Prediction target of the network: the noise (epsilon), x_0 (sample), or the velocity (v_prediction), which says
    x_0 at the noisiest times too, and is recommended for images of 16 pixels and more."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    # optimisation
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    # saving
    preview_images: int = GRID_IMAGES
    """Images of each sample grid; 0 for no grids. With --budget fewer where they do not fit."""
    preview_steps: Auto[int] = AUTO
    """Denoising steps of each sample grid. With --budget fewer where they do not fit."""


AnyDenoiser = TypeVar("AnyDenoiser", bound=DenoiserSettings)


def recommended(settings: AnyDenoiser, dataset: Shaped) -> AnyDenoiser:
    """Return the settings completed for the dataset: small images take under three minutes on two cores."""
    # choose the size of the network
    side = max(dataset.shape[1:], default=0)
    widths: tuple[int, ...] = (64, 128, 256, 256)
    if len(dataset.shape) == 1:
        widths = (128,)
    elif side < 16:
        widths = (32, 64)
    elif side < 64:
        widths = (64, 128, 128)
    values: dict[str, Any] = {"block_out_channels": widths, "attention_levels": ()}
    if settings.captions:
        values["attention_levels"] = upper_levels(len(settings.block_out_channels or widths))
    # choose the training
    values |= {"batch_size": 64, "learning_rate": 2e-4, "max_steps": 20_000}
    values |= {"prediction_type": "epsilon", "layers_per_block": 2, "preview_steps": 50}
    if side < 16:
        values |= {"learning_rate": 2e-3, "max_steps": 1800}
    else:
        values |= {"prediction_type": "v_prediction"}
    return filled(settings, values)


def upper_levels(levels: int) -> tuple[int, ...]:
    """Return all of a number of levels but the finest, unless it is the only one."""
    return tuple(range(min(1, levels - 1), levels))


SMALLER: tuple[dict[str, Any], ...] = (
    {"block_out_channels": (8, 16, 32), "batch_size": 16, "learning_rate": 2e-3},
    {"block_out_channels": (16, 32, 64), "batch_size": 32, "learning_rate": 1e-3},
    {"block_out_channels": (32, 64, 128), "batch_size": 32, "learning_rate": 5e-4},
)
"""Networks and batches for images of 16 pixels and more where time is short; from 64 pixels on one level more."""


def smaller(settings: AnyDenoiser, dataset: Shaped) -> list[AnyDenoiser]:
    """Return the settings with each network that is smaller than the recommended one, the smallest first.

    None of points and of images below 16 pixels, nor where the settings name a size of the network.
    """
    # leave out data and settings without smaller networks
    side = max(dataset.shape[1:], default=0)
    if side < 16 or settings.block_out_channels is not None or settings.layers_per_block is not None:
        return []
    # complete the settings of each network
    offered = []
    for values in SMALLER:
        widths = values["block_out_channels"]
        if side >= 64:
            widths = (*widths, widths[-1])
        size = {**values, "block_out_channels": widths, "layers_per_block": 1}
        offered.append(recommended(filled(settings, size), dataset))
    return offered
