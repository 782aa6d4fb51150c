"""The first stage of latent models: parts that autoencoders with continuous latents and with codes have in common.

Reconstruction, perceptual and adversarial losses (VQGAN, Esser et al. 2021), networks beside the autoencoder, checks,
evaluation and sample grid. The perceptual loss needs the weights of a network that classifies photographs, which no
library has that hfgen depends on; where `lpips` is installed, a file of them is written by

    safetensors.torch.save_model(lpips.LPIPS(net="vgg"), "lpips.safetensors")
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
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
from hfgen.losses.perceptual import LPIPS
from hfgen.losses.perceptual import SMALLEST as SMALLEST_SEEN
from hfgen.metrics.reconstruction import decibels
from hfgen.models.translator import PatchDiscriminator
from hfgen.training.engine.evaluation import batches_of
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, detached
from hfgen.training.engine.recipe import side_or_sides
from hfgen.training.settings.first_stage import SMALLEST, FirstStageSettings

GRID_IMAGES = 16
"""Images on the grid, each above its reconstruction."""

BETAS = (0.5, 0.9)
"""Adam's decay rates (Esser et al. 2021)."""

Nets = Mapping[str, nn.Module]
Losses = tuple[Tensor, dict[str, Tensor]]

DELTA, LARGEST = 1e-6, 1e4
"""The delta of the adaptive weight (Esser et al. 2021, eq. 7), which keeps it finite, and its upper bound."""


class FirstStageLosses(ABC):
    """The losses of the two phases of a step: the discriminator's, then the autoencoder's.

    A subclass says how images pass through its autoencoder. The adaptive weight lambda is a ratio of the norms of two
    gradients, of the whole batch's losses. A norm is no mean over samples, so the gradients, of the last layer only,
    are summed over micro-batches and processes in the discriminator's phase, before the autoencoder needs the ratio. It
    is then the same however the batch is divided.
    """

    def __init__(self, settings: Any, net: Any, discriminator: PatchDiscriminator | None) -> None:
        self.settings, self.objective = settings, OBJECTIVES[settings.loss]
        self.net, self.discriminator = net, discriminator
        self.perceptual = None if settings.perceptual is None else lpips(settings.perceptual)
        self.start = starting_step(settings.adversarial_start, settings.max_steps)
        self.active = False
        self.gradients: list[Tensor] = []
        self.balance = torch.zeros(())

    @abstractmethod
    def before_decoder(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the input of the decoder (B, D, h, w) for images (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def passed(self, nets: Nets, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return reconstructions (B, C, H, W) float32, the loss of the latents, a scalar, and scalars to log."""

    def discriminator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(1) D: tell patches of images from patches of reconstructions; before its start it learns nothing.

        Returns the mean loss over the images `batch["x"]` (B, C, H, W) in [-1, 1], a scalar, and scalars to log.
        """
        # do nothing before the starting step
        x, judge = batch["x"], nets["discriminator"]
        self.active = noise.step >= self.start
        if not self.active:
            return 0.0 * judge(x[:1]).logits.sum(), {}
        # reconstruct the images up to the last layer
        with torch.no_grad():
            h = self.net.decoder.features(self.before_decoder(x, noise))
        self.weigh(x, h)
        last = self.net.decoder.conv_out
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
        last, judge = self.net.decoder.conv_out, cast(nn.Module, self.discriminator)
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
        """(2) Autoencoder: reconstruct, keep the latents in shape, and, from its start on, fool the discriminator.

        Returns the mean loss over the images `batch["x"]` (B, C, H, W) in [-1, 1], a scalar, and scalars to log.
        """
        # add error and loss of the latents
        x = batch["x"]
        made, penalty, more = self.passed(nets, x, noise)
        error, scalars = self.error(x, made)
        loss = error + penalty
        scalars |= more
        # add adversarial_weight * lambda * L_GAN
        if self.discriminator is not None and noise.step >= self.start:
            fooled = self.fooled(nets["discriminator"], made, x)
            loss = loss + self.settings.adversarial_weight * self.balance * fooled
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


def phases(
    losses: FirstStageLosses, name: str, nets: Nets, after: Callable[[], None] | None = None
) -> list[Phase]:
    """Return the phases of a step: the discriminator's, if there is one, and that of the autoencoder `name`.

    `after` runs behind the autoencoder's optimiser.
    """
    # add a phase for the autoencoder, and before it one for the discriminator
    s = losses.settings
    adam = optimizer(nets[name], s.learning_rate)
    found = [Phase("autoencoder", adam, (name,), losses.autoencoder_loss, after=after)]
    if losses.discriminator is not None:
        judge = optimizer(losses.discriminator, s.discriminator_learning_rate)
        forget = losses.after_discriminator(judge)
        found.insert(0, Phase("discriminator", judge, ("discriminator",), losses.discriminator_loss, after=forget))
    return found


def sizes(s: FirstStageSettings, dataset: Dataset) -> dict[str, Any]:
    """Return the settings of encoder and decoder for the dataset's images."""
    channels, widths = dataset.shape[0], s.block_out_channels
    return {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": s.layers_per_block,
        "norm_num_groups": min(32, max(1, widths[0] // 4)),
        "sample_size": side_or_sides(dataset),
    }


def discriminator(s: FirstStageSettings, dataset: Dataset) -> PatchDiscriminator | None:
    """Return the discriminator of patches of the dataset's images, None without an adversarial loss."""
    if not s.adversarial_weight:
        return None
    return PatchDiscriminator(dataset.shape[0], width=s.discriminator_width, layers=s.discriminator_layers)


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


def stages(s: FirstStageSettings) -> Callable[[int], tuple[int, ...]]:
    """Return the function of the number of steps whose result are the steps from which on a step costs another time."""
    if not s.adversarial_weight:
        return lambda steps: (0,)
    return lambda steps: (0, starting_step(s.adversarial_start, steps))


@torch.no_grad()
def reconstruction_psnr(net: Any, dataset: Dataset) -> float:
    """Return the PSNR in decibels of the reconstructions of all images of a dataset."""
    error = 0.0
    for batch in batches_of(dataset):
        x = batch["x"]
        error += float((net(x.to(net.device)).sample.float().cpu() - x).double().square().mean((1, 2, 3)).sum())
    return decibels(error / len(dataset))


@torch.no_grad()
def preview(net: Any, dataset: Dataset) -> Image.Image:
    """Return a grid: the first 16 images, and below them their reconstructions."""
    x = dataset.tensor(GRID_IMAGES)
    return images.grid(images.to_pil(torch.cat([x, net(x.to(net.device)).sample.float().cpu()])), columns=len(x))


def check_first_stage(s: FirstStageSettings, dataset: Dataset, weights: Collection[str] = ()) -> None:
    """Raise ConfigError, naming the field, for data and settings that no run can use.

    `weights`: further fields that must not be negative.
    """
    # check data and weights
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {s.dataset}: an autoencoder is for images, these are points")
    for name in ("perceptual_weight", "adversarial_weight", "adversarial_start", *weights):
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
