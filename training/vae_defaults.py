"""The default settings of a variational autoencoder, by the kind of data."""

from typing import TYPE_CHECKING, Any

from hfgen.data.dataset import Dataset
from hfgen.training.settings import filled

if TYPE_CHECKING:
    from hfgen.training.vae import VAESettings

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


def recommended(settings: "VAESettings", dataset: Dataset) -> "VAESettings":
    """Return the settings with every None replaced by what is recommended for the dataset; sigma stays, as learned."""
    values = COMMON
    if len(dataset.shape) == 1:
        values = COMMON | POINTS
    elif max(dataset.shape[1:]) < 16:
        values = COMMON | SMALL_IMAGES
    elif dataset.shape[0] > 1:
        values = COMMON | COLOURS
    if settings.body == "conv" and values["body"] == "mlp":
        values = values | {"hidden": (32, 64), "activation": "relu"}
    if (settings.body or values["body"]) == "conv":
        values = values | {"hidden": halvings(values["hidden"], dataset.shape[1:])}
    return filled(settings, values)


def halvings(hidden: tuple[int, ...], sides: tuple[int, ...]) -> tuple[int, ...]:
    """Return as many of the stages `hidden` as the sides can be halved for, but one at least."""
    possible = [n for n in range(1, len(hidden) + 1) if all(side % 2**n == 0 for side in sides)]
    return hidden[: max(possible, default=1)]
