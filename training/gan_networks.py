"""The networks of a GAN for the dataset's shape, and the checks of its settings."""

from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from torch import nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.models.biggan import BigGANDiscriminator, BigGANGenerator
from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.mlp import MLPDiscriminator, MLPGenerator
from hfgen.models.progressive import ProgressiveDiscriminator, ProgressiveGenerator
from hfgen.training.engine.recipe import mean_and_std, side_or_sides
from hfgen.training.settings.gan import POINT_NETWORKS, UNUSED, GANSettings

Networks = tuple[nn.Module, nn.Module]


def networks(s: GANSettings, dataset: Dataset, text_width: int | None = None) -> Networks:
    """Return generator and discriminator for the dataset's shape. `text_width`: features of texts; None without texts.

    Raises ConfigError for a network of images on points, or of points on images, and for classes that the dataset does
    not have.
    """
    # check that network and classes fit the data
    points = len(dataset.shape) == 1
    if points != (s.network in POINT_NETWORKS):
        kinds = ("images", "points")
        raise ConfigError(f"--network {s.network} is for {kinds[not points]}; the dataset {s.dataset!r} has "
                          f"{kinds[points]}")  # fmt: skip
    if s.class_conditional and not dataset.num_classes:
        raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
    if text_width is not None:
        if s.network != "dcgan":
            raise ConfigError(f"--captions needs --network dcgan, got {s.network}")
        return dcgan(s, dataset, text_width)
    return BUILDERS[s.network](s, dataset)


def mlp(s: GANSettings, dataset: Dataset) -> Networks:
    """Return generator and discriminator of points (2,): multilayer perceptrons."""
    size: dict[str, Any] = {"dim": dataset.shape[0], "hidden": s.width, "layers": s.layers}
    size["num_classes"] = classes_of(s, dataset)
    return (
        MLPGenerator(**size, latent_dim=s.latent_dim, norm=s.generator_norm, **mean_and_std(dataset)),
        MLPDiscriminator(**size, **judged_together(s), norm=s.discriminator_norm, frequencies=s.frequencies),
    )


def dcgan(s: GANSettings, dataset: Dataset, text_width: int | None = None) -> Networks:
    """Return generator and discriminator of images (C, H, W): those of Radford et al. 2016."""
    size: dict[str, Any] = {**of_images(s, dataset), "base_size": s.base_size, "text_width": text_width}
    generator = DCGANGenerator(
        **size, latent_dim=s.latent_dim, norm=s.generator_norm, extra_layers=s.generator_extra_layers
    )
    discriminator = DCGANDiscriminator(
        **size, **judged_together(s), norm=s.discriminator_norm, extra_layers=s.discriminator_extra_layers
    )
    return generator, discriminator


def biggan(s: GANSettings, dataset: Dataset) -> Networks:
    """Return generator and discriminator of images (C, H, W): those of Brock et al. 2019."""
    if s.generator_norm == "spectral":
        raise ConfigError("--generator-norm spectral: every layer of --network biggan has spectral normalisation; "
                          "choose batch, layer or none beside it")  # fmt: skip
    size: dict[str, Any] = {**of_images(s, dataset), "base_size": s.base_size, "attention_size": s.attention_size}
    return BigGANGenerator(**size, latent_dim=s.latent_dim, norm=s.generator_norm), BigGANDiscriminator(**size)


def progressive(s: GANSettings, dataset: Dataset) -> Networks:
    """Return generator and discriminator of images (C, H, W) that grow: those of Karras et al. 2018."""
    size: dict[str, Any] = {**of_images(s, dataset), "base_size": s.base_size}
    return ProgressiveGenerator(**size, latent_dim=s.latent_dim), ProgressiveDiscriminator(**size, **judged_together(s))


def of_images(s: GANSettings, dataset: Dataset) -> dict[str, Any]:
    """Return the arguments that all generators and discriminators of images (C, H, W) have."""
    return {
        "resolution": side_or_sides(dataset), "channels": dataset.shape[0], "width": s.width,
        "num_classes": classes_of(s, dataset),
    }  # fmt: skip


def classes_of(s: GANSettings, dataset: Dataset) -> int | None:
    """Return the number of classes of a conditional network; None without them."""
    return dataset.num_classes if s.class_conditional else None


def judged_together(s: GANSettings) -> dict[str, Any]:
    """Return the arguments of a discriminator for the samples that it judges together."""
    return {"pack": s.pack, "minibatch_stddev": s.minibatch_stddev}


BUILDERS: dict[str, Callable[[GANSettings, Dataset], Networks]] = {
    "mlp": mlp, "dcgan": dcgan, "biggan": biggan, "progressive": progressive,
}  # fmt: skip
"""Functions from settings and dataset to generator and discriminator, by the name of `--network`."""


def check_gan(s: GANSettings) -> None:
    """Raise ConfigError, naming the field, for values that no GAN can use, and for packs that do not fit the batch."""
    # check the ranges of single fields, and those that the network does not use
    for name in ("discriminator_steps", "discriminator_learning_rate", "penalty_every", "penalty_end", "pack"):
        if not getattr(s, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(s, name)}")
    for name, only in UNUSED[s.network].items():
        if getattr(s, name) != only:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(s, name)} is not for --network {s.network}; leave "
                              "it out")  # fmt: skip
    for name in ("gradient_penalty", "r1", "r2", "orthogonal_penalty", "clip"):
        if not 0 <= getattr(s, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be a number >= 0, got {getattr(s, name)}")
    for name in ("betas", "discriminator_betas"):
        if not all(0 <= beta < 1 for beta in getattr(s, name)):
            raise ConfigError(f"--{name.replace('_', '-')} must be two numbers in [0, 1), got {getattr(s, name)}")
    if not 0 <= s.fade_share <= 1:
        raise ConfigError(f"--fade-share must be a number in [0, 1], got {s.fade_share}")
    # check that packs and groups fit into a micro-batch
    per_process = s.batch_size // PartialState().num_processes
    unit, micro = s.pack * max(1, s.minibatch_stddev), min(s.micro_batch_size or per_process, per_process)
    if micro % unit:
        raise ConfigError(f"--batch-size {s.batch_size}: {micro} samples go through the discriminator at once; that "
                          f"must be a multiple of {unit} (--pack x --minibatch-stddev)")  # fmt: skip
