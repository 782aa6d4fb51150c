"""The losses of the autoencoder of latent diffusion, and the balance between reconstruction and adversarial loss."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from hfgen.losses.adversarial import OBJECTIVES
from hfgen.losses.elbo import kl_to_standard_normal
from hfgen.losses.perceptual import LPIPS
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.translator import PatchDiscriminator
from hfgen.training.noise import Noise
from hfgen.training.phase import Batch

if TYPE_CHECKING:
    from hfgen.training.autoencoder_kl import AutoencoderKLSettings

Nets = Mapping[str, nn.Module]
Losses = tuple[Tensor, dict[str, Tensor]]

DELTA, LARGEST = 1e-6, 1e4
"""The delta of the adaptive weight (Esser et al. 2021, eq. 7), which keeps it finite, and its upper bound."""


class Game:
    """The losses of the two phases of a step: the discriminator's, then the autoencoder's.

    The adaptive weight lambda is a ratio of the norms of two gradients, of the whole batch's losses. A norm is no mean
    over samples, so the gradients, of the last layer only, are summed over micro-batches and processes in the
    discriminator's phase, before the autoencoder needs the ratio. It is then the same however the batch is divided.
    """

    def __init__(
        self,
        settings: "AutoencoderKLSettings",
        vae: AutoencoderKL,
        discriminator: PatchDiscriminator | None,
        perceptual: LPIPS | None = None,
    ):
        self.settings, self.objective = settings, OBJECTIVES[settings.loss]
        self.vae, self.discriminator, self.perceptual = vae, discriminator, perceptual
        self.start = starting_step(settings.adversarial_start, settings.max_steps or 0)
        self.active = False
        self.gradients: list[Tensor] = []
        self.balance = torch.zeros(())

    def discriminator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(1) D: tell patches of images from patches of reconstructions; before its start it learns nothing."""
        x, judge = batch["x"], nets["discriminator"]
        self.active = noise.step >= self.start
        if not self.active:
            return 0.0 * judge(x[:1]).sum(), {}
        with torch.no_grad():
            posterior = self.vae.posterior(x)
            z = posterior.mean + posterior.std * noise.normal("eps", *posterior.mean.shape[1:])
            h = self.vae.decoder.features(self.vae.before_decoder(z))
        self.weigh(x, h)
        last = self.vae.decoder.conv_out
        real, fake = judge(x), judge(last(h).detach().float())
        loss = self.objective.d(real, fake)
        says = self.objective.verdict(real.detach(), fake.detach())
        return loss, {"loss_discriminator": loss.detach(), "D(x)": says[0], "D(x')": says[1]}

    def weigh(self, x: Tensor, h: Tensor) -> None:
        """Add this micro-batch's gradients of both losses in the last layer, whose input is h, to the batch's."""
        last, judge = self.vae.decoder.conv_out, cast(nn.Module, self.discriminator)
        weight = last.weight.detach().requires_grad_()
        with torch.enable_grad():
            made = F.conv2d(h, weight, cast(Tensor, last.bias).detach(), padding=1).float()
            losses = (self.error(x, made)[0], self.fooled(judge, made, x))
            found = [torch.autograd.grad(loss, weight, retain_graph=True)[0].float() for loss in losses]
        self.gradients = found if not self.gradients else [a + b for a, b in zip(self.gradients, found, strict=True)]

    def after_discriminator(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Return what is done behind the discriminator's optimiser.

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
        """(2) Autoencoder: reconstruct, keep q(z|x) near N(0, I), and, from its start on, fool the discriminator."""
        s, x = self.settings, batch["x"]
        channels, factor = s.latent_channels, self.vae.factor
        eps = noise.normal("eps", channels, x.shape[2] // factor, x.shape[3] // factor)
        out: Any = nets["vae"](x, eps=eps)
        made, q = out.sample.float(), out.latent_dist
        error, scalars = self.error(x, made)
        kl = kl_to_standard_normal(q.mean.float(), q.logvar.float()).flatten(1).sum(1).mean()
        loss = error + s.kl_weight * kl / x[0].numel()
        scalars["kl"] = kl
        if self.discriminator is not None and noise.step >= self.start:
            fooled = self.fooled(nets["discriminator"], made, x)
            loss = loss + cast(float, s.adversarial_weight) * self.balance * fooled
            scalars |= {"adversarial": fooled, "adversarial_balance": self.balance}
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in scalars.items()}}

    def fooled(self, judge: nn.Module, made: Tensor, x: Tensor) -> Tensor:
        """Return the adversarial loss of reconstructions; some losses compare them with the images x."""
        fake = judge(made)
        return self.objective.g(fake, judge(x) if self.settings.loss == "relativistic" else fake)

    def error(self, x: Tensor, made: Tensor) -> Losses:
        """Return the mean error of reconstructions, absolute or squared, with the weighted LPIPS; and its parts."""
        error = F.l1_loss(made, x) if self.settings.reconstruction == "l1" else F.mse_loss(made, x)
        if self.perceptual is None:
            return error, {"reconstruction": error}
        distance = self.perceptual.to(x.device)(x, made).mean()
        return error + self.settings.perceptual_weight * distance, {"reconstruction": error, "perceptual": distance}


def starting_step(asked: int | None, steps: int) -> int:
    """Return the step, of so many, from which the discriminator takes part: the one asked for, or half of all."""
    return steps // 2 if asked is None else asked


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Return lambda = |grad L_rec| / (|grad L_GAN| + delta), in the decoder's last layer (Esser et al. 2021, eq. 7)."""
    return (reconstruction.norm() / (adversarial.norm() + DELTA)).clamp(max=LARGEST)
