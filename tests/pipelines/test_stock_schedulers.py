"""Every scheduler of diffusers that is said to fit: sampled as its documentation says, sound, saved and loaded."""

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import hfgen
from hfgen import DDPMPipeline, DDPMScheduler, MLPDenoiser
from hfgen.registry import STOCK_SCHEDULERS
from tests.helpers import seed
from tests.hub.models import make

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")               # diffusers with numpy 2

FIT = ["DDPMScheduler", *STOCK_SCHEDULERS]
SIGMAS = (1 / DDPMScheduler().alphas_cumprod.double() - 1).sqrt()
MEAN, STD = torch.tensor([0.4, -0.3]), torch.tensor([0.5, 0.2])


class Exact(MLPDenoiser):
    """The exact predictor of the noise in samples of a Gaussian, in the place of a trained network."""

    def forward(self, sample: Tensor, timestep: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
        """Return E[eps | x_t] = sigma (x_t - alpha m) / (alpha^2 s^2 + sigma^2) in a tuple."""
        t = timestep.double()
        noise = torch.lerp(SIGMAS[t.long()], SIGMAS[(t.long() + 1).clamp_max(999)], t.frac())      # as diffusers does
        alpha_bar = (1 / (1 + noise**2)).float()
        eps = (1 - alpha_bar).sqrt() * (sample - alpha_bar.sqrt() * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)
        return (eps,)


def put(pipe: Any, name: str) -> Any:
    """Return the pipeline after a scheduler of diffusers was put in, as its users do."""
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def public(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that diffusers does not keep for itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def by_hand(pipe: Any, steps: int) -> Tensor:
    """Return x_0 (2, 1, 8, 8) of the loop in the documentation of diffusers."""
    scheduler, generator = type(pipe.scheduler).from_config(pipe.scheduler.config), seed(0)
    scheduler.set_timesteps(steps)
    x = randn_tensor((2, 1, 8, 8), generator=generator) * scheduler.init_noise_sigma
    noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        with torch.no_grad():
            eps = pipe.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(eps, t, x, **noise).prev_sample
    return x


@pytest.mark.parametrize("name", FIT)
def test_a_scheduler_that_fits_is_sampled_as_diffusers_does_saved_and_loaded_by_both(name: str, tmp_path) -> None:
    pipe = put(make("ddpm"), name)
    latents = pipe(2, num_inference_steps=8, generator=seed(0), output_type="latent").images
    torch.testing.assert_close(latents, by_hand(pipe, 8), atol=1e-4, rtol=1e-4)
    pipe.save_pretrained(tmp_path)
    again: Any = hfgen.AutoPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler).__name__ == name
    images = [one(2, num_steps=8, generator=seed(0), output_type="np").images for one in (pipe, again)]
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(stock.scheduler) is getattr(diffusers, name)
    assert public(stock.scheduler.config) == public(again.scheduler.config) == public(pipe.scheduler.config)


@pytest.mark.parametrize("name", FIT)
def test_a_scheduler_that_fits_samples_a_gaussian_with_its_mean_and_variance(name: str) -> None:
    pipe = put(DDPMPipeline(Exact(), DDPMScheduler(clip_sample=False)), name)
    points = pipe(4096, num_inference_steps=400, generator=seed(0), output_type="latent").images
    torch.testing.assert_close(points.mean(0), MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(points.std(0), STD, atol=0, rtol=0.06)


@pytest.mark.parametrize("name", FIT)
def test_a_scheduler_made_from_ours_has_its_noise_levels_and_not_the_defaults_of_its_class(name: str) -> None:
    scheduler = getattr(diffusers, name).from_config(DDPMScheduler().config)
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (1e-4, 0.02)
    torch.testing.assert_close(scheduler.alphas_cumprod, DDPMScheduler().alphas_cumprod.float(), atol=1e-5, rtol=0)
