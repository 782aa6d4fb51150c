"""Denoising diffusion probabilistic models (Ho et al. 2020): a network learns to see the noise in a noisy image.

    hfgen train ddpm --dataset digits --output-dir runs/digits
    accelerate launch training/ddpm.py --dataset digits --output-dir runs/digits
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.diffusion import l_simple, min_snr_weights, vlb_weights
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.reverse import vlb_term
from hfgen.training.denoiser import (
    Conditions,
    drawn,
    network,
    open_dataset,
    optimizer,
    target,
)
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import denoised
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.settings.ddpm import SPEC, DDPMSettings


def build(s: DDPMSettings, dataset: Dataset) -> Recipe:
    """Return the networks, the one phase and the pipeline of a DDPM on `dataset`."""
    # build networks and scheduler
    conditions = Conditions(s, dataset)
    learned, classes = s.variance_type == "learned_range", conditions.num_class_embeds
    unet: Any = network(s, dataset, learned, classes, conditions.width, s.num_train_timesteps)
    scheduler = DDPMScheduler(
        num_train_timesteps=s.num_train_timesteps, beta_schedule=s.beta_schedule,
        prediction_type=s.prediction_type, variance_type=s.variance_type,
        clip_sample=len(dataset.shape) == 3,
    )  # fmt: skip
    # assemble the recipe
    nets = {"unet": unet, **conditions.nets}
    trained = ("unet", *conditions.trained)
    return Recipe(
        nets=nets,
        phases=[Phase("ddpm", optimizer(s, nets), trained, DenoisingLoss(s, scheduler, conditions, dataset.top + 1))],
        pipeline=lambda nets: DDPMPipeline(nets["unet"], scheduler, **conditions.parts(nets)),
        preview=denoised(s, dataset),
        averaged=trained,
        usage=conditions.usage(),
    )  # fmt: skip


class DenoisingLoss:
    """Loss of the one phase: E |eps - eps_theta(x_t, t)|^2 (Ho et al. 2020, eq. 14), weighted by timestep.

    For the prediction types "sample" and "v_prediction" the error of x_0 or of the velocity. For a learned variance
    also the variational bound, on pixels with `levels` grey levels.
    """

    def __init__(
        self, settings: DDPMSettings, scheduler: DDPMScheduler, conditions: Conditions, levels: int = 256
    ) -> None:
        self.settings, self.scheduler, self.conditions, self.levels = settings, scheduler, conditions, levels
        self.weights = timestep_weights(settings, scheduler)

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch and its parts to log, all of them scalars >= 0.

        `batch["x"]`: images (B, C, H, W) in [-1, 1], points (B, 2), or means of latents (B, D, h, w).
        """
        s, scheduler = self.settings, self.scheduler
        # draw noise and timesteps
        x_0 = drawn(batch, noise)
        eps = noise.normal("eps", *x_0.shape[1:])
        t = (noise.stratified("t") * s.num_train_timesteps).long().to(noise.device)
        # diffuse the batch, and predict
        x_t = scheduler.add_noise(x_0, eps, t)
        output = nets["unet"](x_t, t, **self.conditions(nets, batch, noise)).sample
        prediction = output[:, : x_0.shape[1]]
        # weigh the errors by timestep
        error = l_simple(prediction, target(scheduler, x_0, eps, t))
        mean = (self.weights.to(error.device)[t] * error).mean()
        if s.variance_type != "learned_range":
            return mean, {"loss": mean.detach()}
        # add L_simple and 0.001 L_vlb, which trains the variance alone (Nichol and Dhariwal 2021, eq. 16)
        frozen = torch.cat([prediction.detach(), output[:, x_0.shape[1] :]], 1)
        bound = vlb_term(scheduler, frozen, t, x_t, x_0, self.levels)
        vlb = (bound * s.num_train_timesteps / x_0[0].numel()).mean()
        loss = mean + s.vlb_weight * vlb
        return loss, {"loss": loss.detach(), "simple": mean.detach(), "vlb": vlb.detach()}


def timestep_weights(settings: DDPMSettings, scheduler: DDPMScheduler) -> Tensor:
    """Return the weight > 0 of the error at each timestep, (T,) float32, scaled to mean 1 for a bound's weighting.

    Weights of the bound: Ho et al. 2020, eq. 12; min-SNR: Hang et al. 2023, section 3.4. Raises ConfigError for weights
    of the bound with another prediction than the noise, or with a learned variance.
    """
    # compute weights that do not depend on the variance
    if settings.weighting == "simple":
        return torch.ones(settings.num_train_timesteps)
    if settings.weighting == "min_snr":
        snr = scheduler.snr(torch.arange(settings.num_train_timesteps))
        return min_snr_weights(snr, settings.prediction_type, settings.snr_gamma).float()
    # compute the weights of the bound
    if settings.prediction_type != "epsilon":
        raise ConfigError("--weighting vlb is the bound's weight of the noise: it needs --prediction-type epsilon")
    if settings.variance_type == "learned_range":
        raise ConfigError("--weighting vlb is of a fixed variance; a learned one has the bound in its loss already")
    weights = vlb_weights(scheduler.alpha_bar, settings.variance_type)
    return (weights / weights.mean()).float()


RECIPE = RecipeSpec(SPEC, build, open_dataset)

if __name__ == "__main__":
    from hfgen.training import ddpm

    raise SystemExit(main(ddpm.RECIPE))
