"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1): few latents, from which images come back.

    hfgen train autoencoder_kl --dataset shapes --output-dir runs/autoencoder

Its latents are measured whenever the model is saved: `shift_factor` and `scaling_factor` in its configuration bring
them to mean 0 and variance 1. The perceptual loss needs the weights of a network that classifies photographs, which no
library has that hfgen depends on; where `lpips` is installed, a file of them is written by

    safetensors.torch.save_model(lpips.LPIPS(net="vgg"), "lpips.safetensors")
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from PIL import Image
from torch import Tensor, nn

from hfgen import images
from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.loading.files import read_weights, tensor_of
from hfgen.losses.adversarial import OBJECTIVES
from hfgen.losses.elbo import kl_to_standard_normal
from hfgen.losses.perceptual import LPIPS
from hfgen.losses.perceptual import SMALLEST as SMALLEST_SEEN
from hfgen.metrics.reconstruction import decibels
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.translator import PatchDiscriminator
from hfgen.pipelines.autoencoder_kl import AutoencoderKLPipeline
from hfgen.pipelines.base import Pipeline
from hfgen.training.engine.evaluation import batches_of, held_out
from hfgen.training.engine.latents import mean_and_variance
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe, detached
from hfgen.training.engine.recipe import RecipeSpec, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.autoencoder_kl import SMALLEST, SPEC, AutoencoderKLSettings

GRID_IMAGES, MEASURED_IMAGES = 16, 1024
"""Images on the grid, each above its reconstruction; and images whose latents are measured, at least."""

BETAS = (0.5, 0.9)
"""Adam's decay rates (Esser et al. 2021)."""


def build(s: AutoencoderKLSettings, dataset: Dataset) -> Recipe:
    """Return autoencoder and discriminator, their phases and the pipeline of an autoencoder of `dataset`."""
    check_autoencoder_kl(s, dataset)
    # build the networks
    vae: Any = network(s, dataset)
    nets: dict[str, nn.Module] = {"vae": vae}
    discriminator: Any = None
    if s.adversarial_weight:
        discriminator = nets["discriminator"] = PatchDiscriminator(
            dataset.shape[0], width=s.discriminator_width, layers=s.discriminator_layers
        )
    # add a phase for the autoencoder, and before it one for the discriminator
    perceptual = None if s.perceptual is None else lpips(s.perceptual)
    losses = AutoencoderLosses(s, vae, discriminator, perceptual)
    phases = [Phase("autoencoder", optimizer(vae, s.learning_rate), ("vae",), losses.autoencoder_loss)]
    if discriminator is not None:
        judge = optimizer(discriminator, s.discriminator_learning_rate)
        after = losses.after_discriminator(judge)
        phases.insert(0, Phase("discriminator", judge, ("discriminator",), losses.discriminator_loss, after=after))
    # assemble the recipe
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
    channels, widths = dataset.shape[0], s.block_out_channels
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=s.layers_per_block,
        latent_channels=s.latent_channels,
        norm_num_groups=min(32, max(1, widths[0] // 4)),
        sample_size=side_or_sides(dataset),
    )


def lpips(file: Path) -> LPIPS:
    """Return LPIPS with the weights in a file; CheckpointError if it is broken, ConfigError if they are others."""
    try:
        return LPIPS.of(read_weights([file], tensor_of))
    except KeyError as error:
        raise ConfigError(f"--perceptual {file}: has no {error}; it should hold lpips.LPIPS(net='vgg')") from error
    except ValueError as error:
        raise ConfigError(f"--perceptual {file}: {error}") from error


def optimizer(net: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return Adam for all parameters of a network."""
    return torch.optim.Adam(net.parameters(), lr=rate, betas=BETAS, fused=True)


def pipeline(nets: Mapping[str, nn.Module], dataset: Dataset, s: AutoencoderKLSettings) -> AutoencoderKLPipeline:
    """Return the pipeline of the networks, the autoencoder's latents having been measured and made standard."""
    vae = cast(AutoencoderKL, nets["vae"])
    shift, scale = shift_and_scale(vae, first_batches(dataset, s))
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return AutoencoderKLPipeline(vae)


def first_batches(dataset: Dataset, s: AutoencoderKLSettings) -> Iterator[Batch]:
    """Yield the first batches of the run, with 1,024 images or a few more."""
    size = s.batch_size
    return islice(dataset.batches(seed=s.seed, batch_size=size), -(-MEASURED_IMAGES // size))


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
    # measure mean and variance of the latents
    error, vae = 0.0, cast(Any, net)
    mean, variance = mean_and_variance(vae.to_moments(batch["x"].to(vae.device)) for batch in batches_of(dataset))
    # sum the squared errors of the reconstructions
    for batch in batches_of(dataset):
        x = batch["x"]
        error += float((vae(x.to(vae.device)).sample.float().cpu() - x).double().square().mean((1, 2, 3)).sum())
    return {"eval_psnr": decibels(error / len(dataset)), "eval_latent_mean": mean, "eval_latent_std": variance**0.5}


@torch.no_grad()
def preview(pipeline: Pipeline, dataset: Dataset) -> Image.Image:
    """Return a grid: the first 16 images, and below them their reconstructions."""
    x, vae = dataset.tensor(GRID_IMAGES), cast(Any, pipeline).vae
    return images.grid(images.to_pil(torch.cat([x, vae(x.to(vae.device)).sample.float().cpu()])), columns=len(x))


def check_autoencoder_kl(s: AutoencoderKLSettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, for data and settings that no run can use."""
    # check data and weights
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {s.dataset}: an autoencoder is for images, these are points")
    for name in ("perceptual_weight", "kl_weight", "adversarial_weight", "adversarial_start"):
        value = getattr(s, name)
        if value is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {value}")
    for name in ("discriminator_learning_rate", "discriminator_layers"):
        if not getattr(s, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(s, name)}")
    # check that the networks can halve the sides
    factor = 2 ** (len(s.block_out_channels) - 1)
    if any(side % factor for side in dataset.shape[1:]):
        raise ConfigError(f"--block-out-channels {s.block_out_channels}: divide the sides by {factor}, and those "
                          f"of {'x'.join(map(str, dataset.shape[1:]))} images are no multiples of it")  # fmt: skip
    channels, *sides = dataset.shape
    if s.perceptual is not None and (channels not in (1, 3) or min(sides) < SMALLEST_SEEN):
        raise ConfigError(f"--perceptual: LPIPS is for images of 1 or 3 channels and {SMALLEST_SEEN} pixels a side or "
                          f"more, these are {'x'.join(map(str, dataset.shape))}")  # fmt: skip
    least = SMALLEST * 2 ** s.discriminator_layers
    if s.adversarial_weight and min(dataset.shape[1:]) < least:
        raise ConfigError(f"--discriminator-layers {s.discriminator_layers}: for images of {least} pixels a side, "
                          f"these have {min(dataset.shape[1:])}; take fewer, or --adversarial-weight 0")  # fmt: skip


Nets = Mapping[str, nn.Module]
Losses = tuple[Tensor, dict[str, Tensor]]

DELTA, LARGEST = 1e-6, 1e4
"""The delta of the adaptive weight (Esser et al. 2021, eq. 7), which keeps it finite, and its upper bound."""


class AutoencoderLosses:
    """The losses of the two phases of a step: the discriminator's, then the autoencoder's.

    The adaptive weight lambda is a ratio of the norms of two gradients, of the whole batch's losses. A norm is no mean
    over samples, so the gradients, of the last layer only, are summed over micro-batches and processes in the
    discriminator's phase, before the autoencoder needs the ratio. It is then the same however the batch is divided.
    """

    def __init__(
        self,
        settings: AutoencoderKLSettings,
        vae: AutoencoderKL,
        discriminator: PatchDiscriminator | None,
        perceptual: LPIPS | None = None,
    ):
        self.settings, self.objective = settings, OBJECTIVES[settings.loss]
        self.vae, self.discriminator, self.perceptual = vae, discriminator, perceptual
        self.start = starting_step(settings.adversarial_start, settings.max_steps)
        self.active = False
        self.gradients: list[Tensor] = []
        self.balance = torch.zeros(())

    def discriminator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(1) D: tell patches of images from patches of reconstructions; before its start it learns nothing.

        Returns the mean loss over the images `batch["x"]` (B, C, H, W) in [-1, 1], a scalar, and scalars to log.
        """
        # do nothing before the starting step
        x, judge = batch["x"], nets["discriminator"]
        self.active = noise.step >= self.start
        if not self.active:
            return 0.0 * judge(x[:1]).logits.sum(), {}
        with torch.no_grad():
            # reconstruct the images up to the last layer
            posterior = self.vae.posterior(x)
            z = posterior.mean + posterior.std * noise.normal("eps", *posterior.mean.shape[1:])
            h = self.vae.decoder.features(self.vae.before_decoder(z))
        self.weigh(x, h)
        last = self.vae.decoder.conv_out
        # tell images from reconstructions
        real, fake = judge(x).logits, judge(last(h).detach().float()).logits
        loss = self.objective.d(real, fake)
        says = self.objective.verdict(real.detach(), fake.detach())
        return loss, {"loss_discriminator": loss.detach(), "D(x)": says[0], "D(x')": says[1]}

    def weigh(self, x: Tensor, h: Tensor) -> None:
        """Add this micro-batch's gradients of both losses in the last layer, whose input is h, to the batch's.

        x: images (B, C, H, W) in [-1, 1]; h: features (B, F, H, W).
        """
        # take the gradient of each loss
        last, judge = self.vae.decoder.conv_out, cast(nn.Module, self.discriminator)
        weight = last.weight.detach().requires_grad_()
        with torch.enable_grad():
            made = F.conv2d(h, weight, cast(Tensor, last.bias).detach(), padding=1).float()
            losses = (self.error(x, made)[0], self.fooled(judge, made, x))
            gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0].float() for loss in losses]
        # sum over micro-batches
        earlier = self.gradients or [torch.zeros_like(gradient) for gradient in gradients]
        self.gradients = [a + b for a, b in zip(earlier, gradients, strict=True)]

    def after_discriminator(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Return the function that runs after the discriminator's optimiser step.

        Before the discriminator takes part, its optimiser forgets that it took steps (of zero), on whose number Adam's
        correction depends. Later, the weight of the adversarial loss is settled for the autoencoder's phase.
        """

        def after() -> None:
            if self.active:
                self.balance = adaptive_weight(*(reduce(g, "sum") for g in self.gradients))
                self.gradients = []
                return
            for state in optimizer.state.values():
                state["step"].zero_()

        return after

    def autoencoder_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(2) Autoencoder: reconstruct, keep q(z|x) near N(0, I), and, from its start on, fool the discriminator.

        Returns the mean loss over the images `batch["x"]` (B, C, H, W) in [-1, 1], a scalar, and scalars to log.
        """
        # reconstruct through a draw of q(z|x)
        s, x = self.settings, batch["x"]
        channels, factor = s.latent_channels, self.vae.factor
        eps = noise.normal("eps", channels, x.shape[2] // factor, x.shape[3] // factor)
        out: Any = nets["vae"](x, eps=eps)
        made, q = out.sample.float(), out.latent_dist
        # add error and kl_weight KL / number of pixel values
        error, scalars = self.error(x, made)
        kl = kl_to_standard_normal(q.mean.float(), q.logvar.float()).flatten(1).sum(1).mean()
        loss = error + s.kl_weight * kl / x[0].numel()
        scalars["kl"] = kl
        # add adversarial_weight * lambda * L_GAN
        if self.discriminator is not None and noise.step >= self.start:
            fooled = self.fooled(nets["discriminator"], made, x)
            loss = loss + s.adversarial_weight * self.balance * fooled
            scalars |= {"adversarial": fooled, "adversarial_balance": self.balance}
        return loss, detached({"loss": loss, **scalars})

    def fooled(self, judge: nn.Module, made: Tensor, x: Tensor) -> Tensor:
        """Return the adversarial loss, a scalar, of reconstructions; some losses compare them with the images x.

        Both are (B, C, H, W); x is in [-1, 1].
        """
        fake = judge(made).logits
        return self.objective.g(fake, judge(x).logits if self.settings.loss == "relativistic" else fake)

    def error(self, x: Tensor, made: Tensor) -> Losses:
        """Return the mean error of reconstructions, absolute or squared, with the weighted LPIPS; and its parts.

        All are non-negative scalars, of images (B, C, H, W).
        """
        measure = F.l1_loss if self.settings.reconstruction == "l1" else F.mse_loss
        error = measure(made, x)
        if self.perceptual is None:
            return error, {"reconstruction": error}
        distance = self.perceptual.to(x.device)(x, made).mean()
        return error + self.settings.perceptual_weight * distance, {"reconstruction": error, "perceptual": distance}


def starting_step(start: int | None, steps: int) -> int:
    """Return the step from which the discriminator takes part: `start`, or half of all `steps` for None."""
    return steps // 2 if start is None else start


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Return lambda = |grad L_rec| / (|grad L_GAN| + delta), in the decoder's last layer (Esser et al. 2021, eq. 7).

    A scalar in [0, 1e4]; the arguments are the two gradients, of one shape.
    """
    return (reconstruction.norm() / (adversarial.norm() + DELTA)).clamp(max=LARGEST)


RECIPE = RecipeSpec(SPEC, build)

if __name__ == "__main__":
    from hfgen.training import autoencoder_kl

    raise SystemExit(main(autoencoder_kl.RECIPE))
