"""From an image to the noise that makes it, and from there between images (Song et al. 2021, section 4.3)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.images import check_output_type
from hfgen.pipelines.base import check_int
from hfgen.pipelines.denoising import EVERYWHERE, DenoisingPipeline, Prompt
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
from hfgen.pipelines.latents import slerp
from hfgen.pipelines.outputs import decode, in_plane
from hfgen.schedulers.samplers import make_sampler

STEPS = 50


class Inversion(NamedTuple):
    """`latents`: x_T; `reconstructed`: x_0 made of them; `error` (B,): its mean squared error, in model coordinates.

    Of latent diffusion x_0 are the autoencoder's latents, and the error is measured on those; `pipe.decode` shows them.
    """

    latents: Tensor
    reconstructed: Tensor
    error: Tensor


def invert(
    pipe: DenoisingPipeline, images: Any, num_steps: int = STEPS, class_labels: Any = None, prompt: Prompt = None
) -> Inversion:
    """Return the x_T that the probability-flow ODE leads `images` to, and how exactly it leads back.

    `images`: PIL images, a float tensor (B, C, H, W) in [0, 1], or points (B, 2) in data coordinates. Both ways take
    `num_steps` steps of Heun, two evaluations each, of the same ODE; the error falls with their square. An item's
    `class_labels` and `prompt` are those of the way there and back, without guidance. Raises ConfigError for a pipeline
    that does not denoise, and for what it cannot be told.
    """
    check_int("num_steps", num_steps, 1)
    x = to_model(pipe, images)
    told = conditions(pipe, class_labels, prompt, len(x))
    latents = follow(pipe, x, num_steps, told, inverse=True)
    reconstructed = follow(pipe, latents, num_steps, told)
    return Inversion(latents, reconstructed, (reconstructed - x).double().square().flatten(1).mean(1))


def interpolate(
    pipe: DenoisingPipeline,
    images: Any,
    n: int = 8,
    num_steps: int = STEPS,
    class_labels: Any = None,
    output_type: str = "pil",
    prompt: Prompt = None,
) -> Any:
    """Return `n` >= 2 images on the way from the first of two `images` to the second, both included.

    Their x_T are joined along a great circle and led back by the ODE (Song et al. 2021, section 4.3; `slerp`). The
    class and the text, one for all, are the same on the whole way.
    """
    check_int("n", n, 2)
    check_output_type(output_type)
    ends = invert(pipe, images, num_steps, class_labels, prompt).latents
    if len(ends) != 2:
        raise ConfigError(f"images must be two, to go from the one to the other; got {len(ends)}")
    between = slerp(ends[0].flatten(), ends[1].flatten(), torch.linspace(0, 1, n)).view(n, *ends.shape[1:])
    x_0 = follow(pipe, between, num_steps, conditions(pipe, class_labels, prompt, n))
    latent = isinstance(pipe, LatentDiffusionPipeline)
    made = pipe.decode(x_0, output_type).images if latent else decode(x_0, pipe.unet, output_type)
    pipe.maybe_free_model_hooks()
    return made


@torch.no_grad()
def follow(
    pipe: DenoisingPipeline, x: Tensor, num_steps: int, told: dict[str, Tensor | None], inverse: bool = False
) -> Tensor:
    """Return x at the other end of the probability-flow ODE: from x_T to the state at t_min, or the `inverse` way."""
    heun = make_sampler("ode_heun", pipe.scheduler)
    heun = type(heun).from_config(heun.config, denoise=False)
    heun.set_timesteps(num_steps, inverse=inverse)
    for tau in heun.timesteps.tolist():
        timestep = torch.tensor(tau, device=x.device)
        output = pipe.unet(x.to(pipe.unet.dtype), timestep, return_dict=False, **told)[0]
        x = heun.step(output[:, : x.shape[1]].to(x.dtype), tau, x).prev_sample
    return x


def conditions(pipe: DenoisingPipeline, class_labels: Any, prompt: Prompt, B: int) -> dict[str, Tensor | None]:
    """Return what the network is told of B states, by argument: the classes and the features of the texts it knows."""
    return pipe._guide(prompt, None, class_labels, B, 1.0, EVERYWHERE, 0.0).told


def to_model(pipe: DenoisingPipeline, images: Any) -> Tensor:
    """Return images, or points in data coordinates, in model coordinates, float32 on the network's device."""
    if not isinstance(pipe, DenoisingPipeline):
        raise ConfigError(f"pipe must be a pipeline that denoises, got {type(pipe).__name__}")
    shape, device = pipe._image_shape(), pipe._execution_device                        # (C, H, W) or (2,)
    if not in_plane(pipe.unet):
        channels, height, width = shape
        return pipe._encoded(prepared(checked(images), channels, height, width, device)).float()
    points = torch.as_tensor(images, dtype=torch.float32, device=device)
    if points.ndim != 2 or points.shape[1:] != shape or not len(points):
        raise ConfigError(f"points must have shape [B, {shape[0]}], got {list(points.shape)}")
    mean, std = (points.new_tensor(pipe.unet.config[key]) for key in ("data_mean", "data_std"))
    return (points - mean) / std
