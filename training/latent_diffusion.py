"""Latent diffusion (Rombach et al. 2022): denoising diffusion in the latents of an autoencoder that stays as it is.

    hfgen train autoencoder_kl --dataset shapes --output-dir runs/autoencoder
    hfgen train latent_diffusion --autoencoder runs/autoencoder --dataset shapes --captions --output-dir runs/latent

Images are encoded once. Conditions, classes or captions, are left out at random, so that samples can be guided.
"""

from typing import Any, cast

import torch
from accelerate import PartialState

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.fold_shift import fold_shift
from hfgen.models.unet import UNet
from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.training.ddpm import DenoisingLoss
from hfgen.training.denoiser import Conditions, images_to_encode, network, optimizer
from hfgen.training.engine.encoded_images import try_out
from hfgen.training.engine.latents import Latents, encoded, load_autoencoder
from hfgen.training.engine.phase import Phase, Recipe
from hfgen.training.engine.preview import denoised
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.settings.latent_diffusion import SPEC, LatentDiffusionSettings, recommended


def open_latents(settings: LatentDiffusionSettings) -> Latents:
    """Return the latents of the dataset that the settings name, encoded into the run's folder unless they are there."""
    s = settings
    check_latent_diffusion(s)
    # load autoencoder and images
    vae = cast(AutoencoderKL, load_autoencoder(s.autoencoder).to(PartialState().device))
    source, flip = images_to_encode(s, vae.config["in_channels"], "latent diffusion")
    # build the networks once with latents of the right shape, so that errors come early
    shape = vae.to_latents(source.tensor(1).to(vae.device)).shape
    nothing = torch.zeros(()).expand(len(source), *shape)           # of their shape, in no memory
    try_out(s, Latents(source, nothing, nothing, ""), recommended, build)
    # encode all images once
    return encoded(source, vae, flip, s.output_dir / "latents")


def build(s: LatentDiffusionSettings, dataset: Dataset) -> Recipe:
    """Return U-Net, text encoder if any, the one phase and the pipeline of a diffusion model of latents."""
    # build networks and scheduler
    conditions = Conditions(s, dataset)
    classes, timesteps = conditions.num_class_embeds, s.num_train_timesteps
    unet: Any = network(s, dataset, False, classes, conditions.width, timesteps)
    scheduler = DDPMScheduler(
        num_train_timesteps=s.num_train_timesteps, beta_schedule=s.beta_schedule,
        prediction_type=s.prediction_type, variance_type=s.variance_type, clip_sample=False,
        timestep_spacing="trailing", steps_offset=1,                # as Stable Diffusion's pipelines require
    )  # fmt: skip
    vae = fold_shift(load_autoencoder(s.autoencoder))
    nets = {"unet": unet, **conditions.nets}
    trained = ("unet", *conditions.trained)

    # put the autoencoder beside them
    def pipeline(nets: Any) -> LatentDiffusionPipeline:
        unet: UNet | ConditionalUNet = nets["unet"]
        on_device = cast(Any, vae).to(unet.device)
        return LatentDiffusionPipeline(on_device, unet, scheduler, **conditions.parts(nets))

    # assemble the recipe
    return Recipe(
        nets=nets,
        phases=[Phase("latent_diffusion", optimizer(s, nets), trained, DenoisingLoss(s, scheduler, conditions))],
        pipeline=pipeline,
        preview=denoised(s, dataset),
        averaged=trained,
        usage=conditions.usage(),
    )  # fmt: skip


def check_latent_diffusion(s: LatentDiffusionSettings) -> None:
    """Raise ConfigError, naming the field, for settings that no run can use."""
    if s.streaming:
        raise ConfigError("--streaming: images are encoded once, all of them; leave it out")
    if s.variance_type == "learned_range":
        raise ConfigError("--variance-type learned_range is for images; latents take fixed_small or fixed_large")


RECIPE = RecipeSpec(SPEC, build, open_latents)

if __name__ == "__main__":
    from hfgen.training import latent_diffusion

    raise SystemExit(main(latent_diffusion.RECIPE))
