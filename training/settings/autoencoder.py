"""Settings of `hfgen train autoencoder`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, Literal

from hfgen.models.choices import Body, CodeActivation, OutputActivation
from hfgen.training.engine.settings import AUTO, Auto, Settings, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.shared import EvaluationFields

Corruption = Literal["none", "gaussian", "salt_pepper", "patch"]


@dataclass(kw_only=True)
class AutoencoderSettings(EvaluationFields, Settings):
    """Train an autoencoder on images: deep, with a weight penalty, sparse, denoising or completing."""

    # network
    body: Auto[Body] = AUTO
    """Network, mlp or conv; mlp for images with an odd side."""
    hidden: Auto[tuple[int, ...]] = AUTO
    """Units of the hidden layers, or channels of the convolutions, of the encoder; the decoder has them backwards."""
    latent_dim: Auto[int] = AUTO
    """Numbers in the code."""
    code_activation: Auto[CodeActivation] = AUTO
    """Activation of the code: linear, relu or sigmoid. For --sparsity l1 relu, for kl sigmoid."""
    tied: bool = False
    """Make the weights of the decoder the transposes of the encoder's, D = E^T."""
    output_activation: OutputActivation = "tanh"
    """Activation of the last layer: tanh, or linear; with --tied --hidden the latter is a matrix factorisation."""

    # losses
    weight_penalty: float = 0.0
    """Weight of the sum of all squared weights (not biases) in the loss."""
    sparsity: Literal["none", "l1", "kl"] = "none"
    """Penalty of the code's activity: l1, the mean of |z|; kl, sum of KL(rate || mean activity) over the code's units,
    the mean being that of each micro-batch, so that it depends on how a batch is divided."""
    sparsity_weight: float = 1e-2
    """Weight of that penalty in the loss."""
    sparsity_rate: float = 0.05
    """Mean activity that --sparsity kl aims at."""
    corruption: Corruption = "none"
    """Corruption of the images that the network restores: gaussian, salt_pepper, or patch (a missing box)."""
    corruption_level: float | None = None
    """gaussian: standard deviation (pixels are in [-1, 1]); salt_pepper: share of pixels; patch: share of each side."""


def recommended(settings: AutoencoderSettings, dataset: Shaped) -> AutoencoderSettings:
    """Return the settings completed for the dataset: on one core digits take ten seconds, 28x28 a few minutes."""
    # choose the size of the network
    sides = dataset.shape[1:] or (1,)
    stages = min(3, *((side & -side).bit_length() - 1 for side in sides))                # times all sides can be halved
    small = max(sides) < 16
    body = settings.body or ("mlp" if small or not stages else "conv")
    hidden: tuple[int, ...] = (32, 64, 128)[: max(1, stages)]
    if body == "mlp":
        hidden = (1024,) if small else (1024, 512)                     # on few images one wide layer restores best
    # choose the training
    values: dict[str, Any] = {"body": body, "hidden": hidden, "latent_dim": 128}
    values |= {"batch_size": 128, "learning_rate": 1e-3, "max_steps": 4000}
    if small:
        values |= {"latent_dim": 32, "learning_rate": 2e-3, "max_steps": 2000}
    # choose the activation and the level that penalty and corruption need
    values["code_activation"] = {"none": "linear", "l1": "relu", "kl": "sigmoid"}[settings.sparsity]
    if settings.corruption != "none":
        values["corruption_level"] = {"gaussian": 0.8, "salt_pepper": 0.2, "patch": 0.4}[settings.corruption]
    return filled(settings, values)


SPEC = SettingsSpec(AutoencoderSettings, recommended)
