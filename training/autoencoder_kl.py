"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1): few latents, from which images come back.

    hfgen train autoencoder_kl --dataset shapes --output-dir runs/autoencoder

Its latents are measured whenever the model is saved: `shift_factor` and `scaling_factor` in its configuration bring
them to mean 0 and variance 1. The perceptual loss needs the weights of a network that classifies photographs, which no
library has that hfgen depends on; where `lpips` is installed, a file of them is written by

    safetensors.torch.save_model(lpips.LPIPS(net="vgg"), "lpips.safetensors")
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import nn

from hfgen import images
from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.perceptual import LPIPS
from hfgen.losses.perceptual import SMALLEST as SMALLEST_SEEN
from hfgen.metrics.reconstruction import decibels
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.translator import PatchDiscriminator
from hfgen.pipelines.autoencoder_kl import AutoencoderKLPipeline
from hfgen.pipelines.base import Pipeline
from hfgen.safe_files import read_weights, tensor_of
from hfgen.training import run
from hfgen.training.autoencoder_kl_game import Game, starting_step
from hfgen.training.evaluation import batches_of, held_out
from hfgen.training.latent_data import mean_and_variance
from hfgen.training.phase import Batch, Phase, Recipe
from hfgen.training.settings import Settings, filled

SHOWN, MEASURED = 16, 1024
"""Images on the grid, each above its reconstruction; and images whose latents are measured, at least."""

BETAS = (0.5, 0.9)
SMALLEST = 3
"""Adam's decay rates (Esser et al. 2021); pixels a side that the discriminator's stride of 2^layers leaves at least."""


@dataclass(kw_only=True)
class AutoencoderKLSettings(Settings):
    """Train the autoencoder of latent diffusion on images: reconstruction, small KL, adversarial loss on patches."""

    block_out_channels: tuple[int, ...] | None = None
    """Channels at each resolution, finest first; each but the first halves the sides once more."""
    layers_per_block: int = 1
    """ResNet blocks at each resolution."""
    latent_channels: int = 4
    """Channels of the latents."""

    reconstruction: Literal["l1", "l2"] | None = None
    """Error of the reconstruction: mean of |x - x'| or of (x - x')^2; by default l1 where there is a discriminator."""
    perceptual: Path | None = None
    """File of safetensors with the weights of LPIPS on VGG-16, under the names of the `lpips` library."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS (Zhang et al. 2018), where --perceptual is given."""
    kl_weight: float = 1e-6
    """Weight of KL(q(z|x) || N(0, I)), in nats over the number of pixel values of an image."""
    adversarial_weight: float | None = None
    """Weight of the adversarial loss, on top of the adaptive one (Esser et al. 2021, eq. 7); 0 for no discriminator,
    by default of images below 64 pixels, whose sides are halved once and come back sharp without."""
    adversarial_start: int | None = None
    """Steps before the discriminator takes part; by default half of all."""
    loss: Literal["hinge", "non_saturating", "least_squares", "relativistic"] = "hinge"
    """Adversarial loss of the discriminator and the decoder."""
    discriminator_learning_rate: float | None = None
    """Peak learning rate of the discriminator."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layer."""
    discriminator_layers: int | None = None
    """Layers of the discriminator that halve the sides; by default three, or what the images are large enough for."""

    eval_split: str | None = None
    """Split whose reconstructions are measured with the averaged weights whenever a grid is drawn, and at the end."""
    eval_dataset: str | None = None
    """Dataset of that split, by default the one trained on; its split is then train unless --eval-split is given."""


def build(settings: AutoencoderKLSettings, dataset: Dataset) -> Recipe:
    """Return autoencoder and discriminator, their phases and the pipeline of an autoencoder of `dataset`."""
    s = recommended(settings, dataset)
    check(s, dataset)
    vae: Any = network(s, dataset)
    nets: dict[str, nn.Module] = {"vae": vae}
    discriminator: Any = None
    if s.adversarial_weight:
        discriminator = nets["discriminator"] = PatchDiscriminator(
            dataset.shape[0], width=s.discriminator_width, layers=cast(int, s.discriminator_layers)
        )
    game = Game(s, vae, discriminator, None if s.perceptual is None else lpips(s.perceptual))
    phases = [Phase("autoencoder", optimizer(vae, s.learning_rate), ("vae",), game.autoencoder_loss)]
    if discriminator is not None:
        judge = optimizer(discriminator, s.discriminator_learning_rate)
        after = game.after_discriminator(judge)
        phases.insert(0, Phase("discriminator", judge, ("discriminator",), game.discriminator_loss, after=after))
    shown = held_out(s, dataset)
    return Recipe(
        nets=nets,
        phases=phases,
        pipeline=lambda nets: pipeline(nets, dataset, s),
        preview=lambda pipeline: preview(pipeline, shown or dataset),
        averaged=("vae",),
        evaluate=None if shown is None else lambda nets: evaluate(nets["vae"], shown),
        stages=lambda steps: (0,) if discriminator is None else (0, starting_step(s.adversarial_start, steps)),
        usage="hfgen.AutoencoderKLPipeline.from_pretrained('{run}').reconstruct(images).images",
    )


def network(s: AutoencoderKLSettings, dataset: Dataset) -> AutoencoderKL:
    """Return the autoencoder for the dataset's images."""
    channels, height, width = dataset.shape
    widths = cast(tuple[int, ...], s.block_out_channels)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=s.layers_per_block,
        latent_channels=s.latent_channels,
        norm_num_groups=min(32, max(1, widths[0] // 4)),
        sample_size=height if height == width else (height, width),
    )


def lpips(file: Path) -> LPIPS:
    """Return LPIPS with the weights in a file; CheckpointError if it is broken, ConfigError if they are others."""
    try:
        return LPIPS.of(read_weights([file], tensor_of))
    except KeyError as error:
        raise ConfigError(f"--perceptual {file}: has no {error}; it should hold lpips.LPIPS(net='vgg')") from error
    except ValueError as error:
        raise ConfigError(f"--perceptual {file}: {error}") from error


def optimizer(net: nn.Module, rate: float | None) -> torch.optim.Optimizer:
    """Return Adam for all parameters of a network."""
    return torch.optim.Adam(net.parameters(), lr=cast(float, rate), betas=BETAS, fused=True)


def pipeline(nets: Mapping[str, nn.Module], dataset: Dataset, s: AutoencoderKLSettings) -> AutoencoderKLPipeline:
    """Return the pipeline of the networks, the autoencoder's latents having been measured and made standard."""
    vae = cast(AutoencoderKL, nets["vae"])
    shift, scale = shift_and_scale(vae, first_batches(dataset, s))
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return AutoencoderKLPipeline(vae)


def first_batches(dataset: Dataset, s: AutoencoderKLSettings) -> Iterator[Batch]:
    """Yield the first batches of the run, with 1,024 images or a few more."""
    size = s.global_batch
    return islice(dataset.batches(seed=s.seed, batch_size=size), -(-MEASURED // size))


@torch.no_grad()
def shift_and_scale(vae: AutoencoderKL, batches: Iterator[Batch]) -> tuple[float, float]:
    """Return the mean and 1 / standard deviation of z ~ q(z|x), over all images, channels and positions."""
    posteriors = (vae.posterior(batch["x"].to(vae.device)) for batch in batches)
    mean, variance = mean_and_variance((q.mean, q.std) for q in posteriors)
    return mean, max(variance, 1e-12) ** -0.5


@torch.no_grad()
def evaluate(net: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Return the PSNR in decibels of the reconstructions of all of a dataset, through the means of the latents.

    And the mean and the standard deviation that its normalised latents have, 0 and 1 where the measured shift and
    scale hold for these images too.
    """
    error, vae = 0.0, cast(Any, net)
    mean, variance = mean_and_variance(vae.to_moments(batch["x"].to(vae.device)) for batch in batches_of(dataset))
    for batch in batches_of(dataset):
        x = batch["x"]
        error += float((vae(x.to(vae.device)).sample.float().cpu() - x).double().square().mean((1, 2, 3)).sum())
    return {"eval_psnr": decibels(error / len(dataset)), "eval_latent_mean": mean, "eval_latent_std": variance**0.5}


@torch.no_grad()
def preview(pipeline: Pipeline, dataset: Dataset) -> Image.Image:
    """Return a grid: the first 16 images, and below them their reconstructions."""
    x, vae = dataset.tensor(SHOWN), cast(Any, pipeline).vae
    return images.grid(images.to_pil(torch.cat([x, vae(x.to(vae.device)).sample.float().cpu()])), columns=len(x))


def check(s: AutoencoderKLSettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, for data and settings that no run can use."""
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {s.dataset}: an autoencoder is for images, these are points")
    for name in ("perceptual_weight", "kl_weight", "adversarial_weight", "adversarial_start"):
        value = getattr(s, name)
        if value is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {value}")
    for name in ("discriminator_learning_rate", "discriminator_layers"):
        if not getattr(s, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(s, name)}")
    factor = 2 ** (len(cast(tuple[int, ...], s.block_out_channels)) - 1)
    if any(side % factor for side in dataset.shape[1:]):
        raise ConfigError(f"--block-out-channels {s.block_out_channels}: divide the sides by {factor}, and those "
                          f"of {'x'.join(map(str, dataset.shape[1:]))} images are no multiples of it")  # fmt: skip
    channels, *sides = dataset.shape
    if s.perceptual is not None and (channels not in (1, 3) or min(sides) < SMALLEST_SEEN):
        raise ConfigError(f"--perceptual: LPIPS is for images of 1 or 3 channels and {SMALLEST_SEEN} pixels a side or "
                          f"more, these are {'x'.join(map(str, dataset.shape))}")  # fmt: skip
    least = SMALLEST * 2 ** (s.discriminator_layers or 0)
    if s.adversarial_weight and min(dataset.shape[1:]) < least:
        raise ConfigError(f"--discriminator-layers {s.discriminator_layers}: for images of {least} pixels a side, "
                          f"these have {min(dataset.shape[1:])}; take fewer, or --adversarial-weight 0")  # fmt: skip


def recommended(settings: AutoencoderKLSettings, dataset: Dataset) -> AutoencoderKLSettings:
    """Return the settings with what suits the dataset; sides are halved once below 64 pixels, twice below 128."""
    sides = dataset.shape[1:] or (1,)
    side = max(sides)
    widths = (32, 64) if side < 16 else (16, 32) if side < 64 else (64, 128, 128, 128)[: 3 if side < 128 else 4]
    possible = min((side & -side).bit_length() for side in sides)                    # levels: one more than halvings
    layers = max((n for n in (1, 2, 3) if SMALLEST * 2**n <= min(sides)), default=1)
    values: dict[str, Any] = {"batch_size": 32, "block_out_channels": widths[:possible], "max_steps": 10_000}
    values |= {"learning_rate": 5e-4, "adversarial_weight": 0.5, "discriminator_learning_rate": 2e-4,
               "discriminator_layers": layers}  # fmt: skip
    if side < 64:
        values |= {"learning_rate": 1e-3, "max_steps": 1500, "adversarial_weight": 0.0}
    if side < 16:
        values |= {"batch_size": 64, "max_steps": 2000}
    game = values["adversarial_weight"] if settings.adversarial_weight is None else settings.adversarial_weight
    values["reconstruction"] = "l1" if game else "l2"
    if settings.budget is None:                                                      # else the steps are still to come
        values["adversarial_start"] = (settings.max_steps or values["max_steps"]) // 2
    return filled(settings, values)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of `hfgen train autoencoder_kl ARGUMENTS` (sys.argv by default)."""
    return run.main(AutoencoderKLSettings, build, arguments, recommended)


if __name__ == "__main__":
    from hfgen.training import autoencoder_kl

    raise SystemExit(autoencoder_kl.main())
