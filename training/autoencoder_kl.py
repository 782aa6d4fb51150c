"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1): few latents, from which images come back.

    hfgen train autoencoder_kl --dataset shapes --output-dir runs/autoencoder

Its latents are measured whenever the model is saved: `shift_factor` and `scaling_factor` in its configuration bring
them to mean 0 and variance 1. `hfgen.training.first_stage` has the losses but the KL.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.losses.elbo import kl_to_standard_normal
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.pipelines.autoencoder_kl import AutoencoderKLPipeline
from hfgen.training import first_stage
from hfgen.training.engine.evaluation import batches_of, held_out
from hfgen.training.engine.latents import mean_and_variance
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Recipe
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.first_stage import FirstStageLosses, Nets
from hfgen.training.settings.autoencoder_kl import SPEC, AutoencoderKLSettings

MEASURED_IMAGES = 1024
"""Images whose latents are measured, at least."""


def build(s: AutoencoderKLSettings, dataset: Dataset) -> Recipe:
    """Return autoencoder and discriminator, their phases and the pipeline of an autoencoder of `dataset`."""
    first_stage.check_first_stage(s, dataset, ("kl_weight",))
    # build the networks
    vae: Any = AutoencoderKL(latent_channels=s.latent_channels, **first_stage.sizes(s, dataset))
    nets: dict[str, nn.Module] = {"vae": vae}
    judge = first_stage.discriminator(s, dataset)
    if judge is not None:
        nets["discriminator"] = judge
    # assemble the recipe
    shown = held_out(s, dataset)
    return Recipe(
        nets=nets,
        phases=first_stage.phases(AutoencoderLosses(s, vae, judge), "vae", nets),
        pipeline=lambda nets: pipeline(nets, dataset, s),
        preview=lambda pipeline: first_stage.preview(cast(Any, pipeline).vae, shown or dataset),
        averaged=("vae",),
        evaluate=None if shown is None else lambda nets: evaluate(nets["vae"], shown),
        stages=first_stage.stages(s),
        usage="hfgen.AutoencoderKLPipeline.from_pretrained('{run}').reconstruct(images).images",
    )


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
    vae = cast(Any, net)
    mean, variance = mean_and_variance(vae.to_moments(batch["x"].to(vae.device)) for batch in batches_of(dataset))
    psnr = first_stage.reconstruction_psnr(vae, dataset)
    return {"eval_psnr": psnr, "eval_latent_mean": mean, "eval_latent_std": variance**0.5}


class AutoencoderLosses(FirstStageLosses):
    """The losses of an autoencoder whose latents q(z|x) a small KL keeps near N(0, I)."""

    def before_decoder(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the input of the decoder (B, D, h, w) for images (B, C, H, W) in [-1, 1]: of a draw of q(z|x)."""
        posterior = self.net.posterior(x)
        z = posterior.mean + posterior.std * noise.normal("eps", *posterior.mean.shape[1:])
        made: Tensor = self.net.before_decoder(z)
        return made

    def passed(self, nets: Nets, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return reconstructions through a draw of q(z|x), kl_weight KL / number of pixel values, and the KL."""
        # reconstruct
        channels, factor = self.settings.latent_channels, self.net.factor
        eps = noise.normal("eps", channels, x.shape[2] // factor, x.shape[3] // factor)
        out: Any = nets["vae"](x, eps=eps)
        made, q = out.sample.float(), out.latent_dist
        # compute the KL
        kl = kl_to_standard_normal(q.mean.float(), q.logvar.float()).flatten(1).sum(1).mean()
        return made, self.settings.kl_weight * kl / x[0].numel(), {"kl": kl}


RECIPE = RecipeSpec(SPEC, build)

if __name__ == "__main__":
    from hfgen.training import autoencoder_kl

    raise SystemExit(main(autoencoder_kl.RECIPE))
