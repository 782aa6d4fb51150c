"""Settings of `hfgen train vae`, and their recommended values."""

from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

from hfgen.models.choices import Posterior
from hfgen.training.engine.defaults import IMAGES_AND_POINTS
from hfgen.training.engine.settings import AUTO, Auto, Settings, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.shared import EvaluationFields


@dataclass(kw_only=True)
class VAESettings(EvaluationFields, Settings):
    """Train a variational autoencoder (Kingma and Welling 2014) on images or points, with one layer of latents or more.

    Defaults depend on the dataset; for images of MNIST's size they are the network of Burda et al. 2016.
    """

    # losses
    likelihood: Auto[Literal["bernoulli", "continuous_bernoulli", "gaussian", "discretised_logistic"]] = AUTO
    """Density p(x|z) of pixels: binary, grey (a density), grey or coloured (a density), one of a number of levels."""
    sigma: float | None = None
    """Scale of p(x|z), gaussian: its sigma, discretised_logistic: its s; pixels are in [-1, 1]. Default: learned."""
    sigma_per_pixel: bool = False
    """Make the scale of p(x|z) a function of z for each pixel, in place of one number: a diagonal covariance."""
    min_sigma: float | None = None
    """Smallest scale with --sigma-per-pixel, which keeps it from collapsing to 0 where data are constant. Default: the
    standard deviation of the rounding of pixels to their levels, at most 0.1 (0.01 for points)."""
    binarise: bool = True
    """With --likelihood bernoulli, draw each pixel black or white in every batch, by its brightness."""

    # network
    body: Auto[Literal["mlp", "conv"]] = AUTO
    """Fully connected or convolutional."""
    hidden: Auto[tuple[int, ...]] = AUTO
    """Units of the hidden layers, or channels of the stages, from the data to the (first) latents."""
    activation: Auto[Literal["tanh", "relu", "silu", "gelu"]] = AUTO
    """Activation after each hidden layer."""
    latent_dim: Auto[tuple[int, ...]] = AUTO
    """Dimensions of the latent z; several numbers make a hierarchy of layers, from the data up."""
    upper_hidden: tuple[int, ...] = (100, 100)
    """Units of the hidden layers between one layer of latents and the next."""
    posterior: Posterior = "normal"
    """Family of q(z|x): a diagonal normal distribution, or a normalizing flow from it, for one layer of latents."""
    flow_steps: Auto[int] = AUTO
    """Steps of the flow. Default: 16 for planar, 2 for inverse_autoregressive."""
    flow_width: Auto[int] = AUTO
    """Units of both hidden layers of a step of --posterior inverse_autoregressive. Default: 200."""
    class_conditional: bool = False
    """Give the class, as a one-hot vector, to encoder and decoder."""

    # losses
    importance_samples: int = 1
    """Draws of z for each image: 1 for the ELBO, more for the bound of Burda et al. 2016 (IWAE)."""
    beta: float = 1.0
    """Weight of the KL in the loss (Higgins et al. 2017)."""
    beta_warmup_steps: int = 0
    """Steps over which that weight rises from zero."""
    free_bits: float = 0.0
    """Nats below which the KL of one dimension of one image costs nothing (Kingma et al. 2016)."""

    # optimisation
    adam_epsilon: Auto[float] = AUTO
    """Adam's epsilon."""
    max_grad_norm: float = 1e4
    """Gradients with a larger norm are scaled down to it; losses are sums over pixels, and so are gradients."""


COMMON: dict[str, Any] = {
    "likelihood": "bernoulli",
    "body": "mlp",
    "hidden": (200, 200),
    "activation": "tanh",
    "latent_dim": (50,),
    "batch_size": 100,
    "max_steps": 100_000,
    "learning_rate": 2e-3,
    "adam_epsilon": 1e-4,
}
"""For grey images of MNIST's size: the network and Adam's epsilon of Burda et al. 2016, section 5 and appendix;
larger batches and learning rates, which fall along a cosine, and averaged weights in place of its 3,280 epochs."""

COLOURS: dict[str, Any] = {
    "likelihood": "discretised_logistic", "body": "conv", "hidden": (64, 128, 256), "activation": "relu",
    "latent_dim": (128,), "learning_rate": 1e-3, "adam_epsilon": 1e-8,
}  # fmt: skip
"""For coloured images."""

SMALL_IMAGES: dict[str, Any] = {
    "likelihood": "discretised_logistic", "hidden": (256, 256), "activation": "relu", "latent_dim": (16,),
    "max_steps": 4000, "learning_rate": 2e-3, "adam_epsilon": 1e-8,
}  # fmt: skip
"""For images below 16 pixels, such as digits, whose few grey levels count."""

POINTS: dict[str, Any] = {
    "likelihood": "gaussian", "hidden": (128, 128, 128), "activation": "silu", "latent_dim": (2,),
    "batch_size": 256, "max_steps": 10_000, "learning_rate": 1e-3, "adam_epsilon": 1e-8,
}  # fmt: skip
"""For points."""

FLOWS: dict[str, dict[str, Any]] = {
    "normal": {"flow_steps": 0, "flow_width": 0},
    "planar": {"flow_steps": 16, "flow_width": 0},
    "inverse_autoregressive": {"flow_steps": 2, "flow_width": 200},
}
"""For each posterior; 0 where it has none."""


def recommended(settings: VAESettings, dataset: Shaped) -> VAESettings:
    """Return the settings completed for the dataset; sigma None stays: it is learned."""
    # choose values for the data
    values = COMMON
    if len(dataset.shape) == 1:
        values = COMMON | POINTS
    elif max(dataset.shape[1:]) < 16:
        values = COMMON | SMALL_IMAGES
    elif dataset.shape[0] > 1:
        values = COMMON | COLOURS
    # fit the stages of a convolutional body
    if settings.body == "conv" and values["body"] == "mlp":
        values = values | {"hidden": (32, 64), "activation": "relu"}
    if (settings.body or values["body"]) == "conv":
        values = values | {"hidden": halvings(values["hidden"], dataset.shape[1:])}
    return filled(settings, values | FLOWS[settings.posterior])


def halvings(hidden: tuple[int, ...], sides: tuple[int, ...]) -> tuple[int, ...]:
    """Return as many of the stages `hidden` as the sides can be halved for, but one at least."""
    possible = [n for n in range(1, len(hidden) + 1) if gcd(*sides) % 2**n == 0]
    return hidden[: max(possible, default=1)]


SPEC = SettingsSpec(VAESettings, recommended, kinds=IMAGES_AND_POINTS)
