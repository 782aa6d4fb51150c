"""Settings of `hfgen train classifier`, and their recommended values."""

from dataclasses import dataclass

from hfgen.training.engine.settings import Settings, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.shared import EvaluationFields


@dataclass(kw_only=True)
class ClassifierSettings(EvaluationFields, Settings):
    """Train a small convolutional classifier on labelled images, or one on the encoder of --start-from, which may be an
    autoencoder or VAE."""

    # network
    width: int = 32
    """Channels of the first convolution; the deepest have four times as many. Not used with an encoder."""
    dropout: float = 0.0
    """Share of the penultimate activations dropped in training."""
    # losses
    label_smoothing: float = 0.1
    """Share of each label's probability that is spread over all classes (Szegedy et al. 2016)."""
    # data
    max_shift: int | None = None
    """Pixels by which training images are shifted at random, at most. Default: a twelfth of the side."""
    # optimisation
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    # saving
    sample_every: int = 1000
    """Steps between grids of the images that the classifier is least sure of; 0 for one at the end only."""


def recommended(settings: ClassifierSettings, dataset: Shaped) -> ClassifierSettings:
    """Return the settings completed for the dataset: on one core digits take under a minute, MNIST a few."""
    steps = 800 if max(dataset.shape[1:], default=0) < 16 else 2000
    return filled(settings, {"batch_size": 128, "learning_rate": 2e-3, "max_steps": steps})


SPEC = SettingsSpec(ClassifierSettings, recommended)
