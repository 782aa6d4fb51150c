"""Fields of autoencoders whose latents or codes another model learns, and their recommended values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hfgen.training.engine.settings import AUTO, Auto, Settings, filled
from hfgen.training.engine.spec import Shaped
from hfgen.training.settings.shared import EvaluationFields

SMALLEST = 3
"""Pixels a side that the discriminator's stride of 2^layers leaves at least."""


@dataclass(kw_only=True)
class FirstStageSettings(EvaluationFields, Settings):
    """Fields of the network, the reconstruction and the adversarial loss on patches."""

    # network
    block_out_channels: Auto[tuple[int, ...]] = AUTO
    """Channels at each resolution, finest first; each but the first halves the sides once more."""
    layers_per_block: int = 1
    """ResNet blocks at each resolution."""

    # losses
    reconstruction: Auto[Literal["l1", "l2"]] = AUTO
    """Error of the reconstruction: mean of |x - x'| or of (x - x')^2. With a discriminator l1, else l2."""
    perceptual: Path | None = None
    """File of safetensors with the weights of LPIPS on VGG-16, under the names of the `lpips` library."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS (Zhang et al. 2018), where --perceptual is given."""
    adversarial_weight: Auto[float] = AUTO
    """Weight of the adversarial loss, on top of the adaptive one (Esser et al. 2021, eq. 7); 0 for no discriminator:
    images below 64 pixels, whose sides are halved once or twice, are sharp without."""
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


AnyFirstStage = TypeVar("AnyFirstStage", bound=FirstStageSettings)


def completed(settings: AnyFirstStage, dataset: Shaped, values: dict[str, Any]) -> AnyFirstStage:
    """Return the settings completed by `values`, and by those of the discriminator and of the reconstruction.

    `values` has all channels of `block_out_channels`; those are kept that halve the sides without a remainder.
    """
    # keep the levels that fit, and choose the discriminator
    sides = dataset.shape[1:] or (1,)
    possible = min((side & -side).bit_length() for side in sides)                    # levels: one more than halvings
    layers = max((n for n in (1, 2, 3) if SMALLEST * 2**n <= min(sides)), default=1)
    values |= {"block_out_channels": values["block_out_channels"][:possible], "discriminator_layers": layers}
    values |= {"discriminator_learning_rate": 2e-4}
    # choose the error, and the start of the discriminator
    values["reconstruction"] = "l1" if filled(settings, values).adversarial_weight else "l2"
    if settings.budget is None:                                                      # else the steps are still to come
        values["adversarial_start"] = (settings.max_steps or values["max_steps"]) // 2
    return filled(settings, values)
