"""Inversion of images to noise by the probability-flow ODE, and interpolation (Song et al. 2021, section 4.3)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfgen.checks import check_int
from hfgen.data.coordinates import Coordinates
from hfgen.errors import ConfigError
from hfgen.images import check_output_type
from hfgen.pipelines.conditional import EVERYWHERE
from hfgen.pipelines.denoising import DenoisingPipeline
from hfgen.pipelines.generative import merge_steps
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.latents import slerp
from hfgen.pipelines.text_conditional import Prompt
from hfgen.schedulers.samplers import make_sampler

STEPS = 50
"""Default number of steps, in each direction."""


class Inversion(NamedTuple):
    """Result of an inversion, in model coordinates.

    `latents`: x_T. `reconstructed`: x_0 from x_T, shaped like it. `error` (B,): mean squared error of x_0. In latent
    diffusion both states are latents of the autoencoder, whose images `pipe.decode` returns.
    """

    latents: Tensor
    reconstructed: Tensor
    error: Tensor


def invert(
    pipe: DenoisingPipeline,
    images: Any,
    num_steps: int | None = None,
    class_labels: Any = None,
    prompt: Prompt = None,
    num_inference_steps: int | None = None,
) -> Inversion:
    """Return the noise x_T of `images` under the probability-flow ODE, and the error of the way back to the images.

    `images`: PIL images, a float tensor (B, C, H, W) in [0, 1], or points (B, 2) in data coordinates. The ODE is solved
    in both directions by `num_steps` steps of Heun (`num_inference_steps` in diffusers), two evaluations each. Default:
    50. The error falls with the square of `num_steps`. Both directions are conditioned on the same `class_labels` and
    `prompt`, without guidance. Raises ConfigError for a pipeline that does not denoise, and for conditions that it does
    not have.
    """
    # arguments
    steps = _steps(num_steps, num_inference_steps)
    x = states_of(pipe, images)
    cond = conditions(pipe, class_labels, prompt, len(x))
    # to noise, and back
    latents = follow(pipe, x, steps, cond, inverse=True)
    reconstructed = follow(pipe, latents, steps, cond)
    return Inversion(latents, reconstructed, (reconstructed - x).double().square().flatten(1).mean(1))


def interpolate(
    pipe: DenoisingPipeline,
    images: Any,
    n: int = 8,
    num_steps: int | None = None,
    class_labels: Any = None,
    output_type: str = "pil",
    prompt: Prompt = None,
    num_inference_steps: int | None = None,
) -> Any:
    """Return `n` >= 2 images interpolated between two `images`, both ends included.

    The x_T of both are interpolated along a great circle (`slerp`), and the ODE is solved from each (Song et al. 2021,
    section 4.3). All images are conditioned on the same class and text. Steps and errors as in `invert`.
    """
    # noise of both ends
    steps = _steps(num_steps, num_inference_steps)
    check_int("n", n, 2)
    check_output_type(output_type, latent=True)
    ends = invert(pipe, images, steps, class_labels, prompt).latents
    if len(ends) != 2:
        raise ConfigError(f"images must be two, the ends of the interpolation; got {len(ends)}")
    # great circle between them
    between = slerp(ends[0].flatten(), ends[1].flatten(), torch.linspace(0, 1, n)).view(n, *ends.shape[1:])
    # images from it
    x_0 = follow(pipe, between, steps, conditions(pipe, class_labels, prompt, n))
    samples = pipe._rendered(x_0, output_type)
    pipe.maybe_free_model_hooks()
    return samples


def _steps(num_steps: Any, num_inference_steps: Any) -> int:
    steps = merge_steps(num_steps, num_inference_steps)
    if steps is None:
        return STEPS
    return check_int("num_steps", steps, 1)


@torch.no_grad()
def follow(
    pipe: DenoisingPipeline, x: Tensor, num_steps: int, cond: dict[str, Tensor | None], inverse: bool = False
) -> Tensor:
    """Return the solution of the probability-flow ODE in the shape of x: x_0 from x_T, or with `inverse` x_T from x_0.

    It is solved by `num_steps` steps of Heun between T and the scheduler's t_min. `cond`: keyword arguments of the
    network.
    """
    # plan the steps
    heun = make_sampler("ode_heun", pipe.scheduler)
    heun = type(heun).from_config(heun.config, denoise=False)
    heun.set_timesteps(num_steps, inverse=inverse)
    # make them, with the prediction alone where the network has a variance too
    for tau in heun.timesteps.tolist():
        timestep = torch.tensor(tau, device=x.device)
        output = pipe.unet(x.to(pipe.unet.dtype), timestep, return_dict=False, **cond)[0]
        x = heun.step(output[:, : x.shape[1]].to(x.dtype), tau, x).prev_sample
    return x


def conditions(pipe: DenoisingPipeline, class_labels: Any, prompt: Prompt, B: int) -> dict[str, Tensor | None]:
    """Return the conditions of B states as keyword arguments of the network.

    Class labels: (B,), in [0, K) for K classes. Text features: (B, L, F).
    """
    return pipe._guide(prompt, None, class_labels, B, 1.0, EVERYWHERE, 0.0).cond


def states_of(pipe: DenoisingPipeline, images: Any) -> Tensor:
    """Return images, or points in data coordinates, in model coordinates, float32 on the network's device.

    States have shape (B, C, H, W), in [-1, 1], (B, D, h, w) for latent diffusion, or (B, 2) for points. Raises
    ConfigError for a pipeline that does not denoise, and for points of another shape.
    """
    # shape of a sample
    if not isinstance(pipe, DenoisingPipeline):
        raise ConfigError(f"pipe must be a pipeline that denoises, got {type(pipe).__name__}")
    shape, device = pipe._image_shape(), pipe._execution_device                        # (C, H, W) or (2,)
    # images
    if not pipe.points:
        channels, height, width = shape
        return pipe._encoded(prepared(checked(images), channels, height, width, device)).float()
    # points
    points = torch.as_tensor(images, dtype=torch.float32, device=device)
    if points.ndim != 2 or points.shape[1:] != shape or not len(points):
        raise ConfigError(f"points must have shape [B, {shape[0]}], got {list(points.shape)}")
    return Coordinates.of(pipe.unet.config).to_model(points)
