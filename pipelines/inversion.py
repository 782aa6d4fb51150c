"""From an image to the noise that makes it, and from there between images (Song et al. 2021, section 4.3)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.images import check_output_type
from hfgen.pipelines.base import check_int
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.latents import slerp
from hfgen.pipelines.outputs import decode, in_plane
from hfgen.schedulers.samplers import make_sampler

STEPS = 50


class Inversion(NamedTuple):
    """`latents`: x_T; `reconstructed`: x_0 made of them; `error` (B,): its mean squared error, in model coordinates."""

    latents: Tensor
    reconstructed: Tensor
    error: Tensor


def invert(pipe: DDPMPipeline, images: Any, num_steps: int = STEPS, class_labels: Any = None) -> Inversion:
    """Return the x_T that the probability-flow ODE leads `images` to, and how exactly it leads back.

    `images`: PIL images, a float tensor (B, C, H, W) in [0, 1], or points (B, 2) in data coordinates. Both ways take
    `num_steps` steps of Heun, two evaluations each, of the same ODE; the error falls with their square. An item's
    `class_labels` are those of the way there and back.
    """
    check_int("num_steps", num_steps, 1)
    x = to_model(pipe, images)
    labels = pipe._labels(class_labels, len(x))
    latents = follow(pipe, x, num_steps, labels, inverse=True)
    reconstructed = follow(pipe, latents, num_steps, labels)
    return Inversion(latents, reconstructed, (reconstructed - x).double().square().flatten(1).mean(1))


def interpolate(
    pipe: DDPMPipeline,
    images: Any,
    n: int = 8,
    num_steps: int = STEPS,
    class_labels: Any = None,
    output_type: str = "pil",
) -> Any:
    """Return `n` >= 2 images on the way from the first of two `images` to the second, both included.

    Their x_T are joined along a great circle and led back by the ODE (Song et al. 2021, section 4.3; `slerp`). The
    class, one for all, is the same on the whole way.
    """
    check_int("n", n, 2)
    check_output_type(output_type)
    ends = invert(pipe, images, num_steps, class_labels).latents
    if len(ends) != 2:
        raise ConfigError(f"images must be two, to go from the one to the other; got {len(ends)}")
    between = slerp(ends[0].flatten(), ends[1].flatten(), torch.linspace(0, 1, n)).view(n, *ends.shape[1:])
    x_0 = follow(pipe, between, num_steps, pipe._labels(class_labels, n))
    pipe.maybe_free_model_hooks()
    return decode(x_0, pipe.unet, output_type)


@torch.no_grad()
def follow(
    pipe: DDPMPipeline, x: Tensor, num_steps: int, labels: Tensor | None = None, inverse: bool = False
) -> Tensor:
    """Return x at the other end of the probability-flow ODE: from x_T to the state at t_min, or the `inverse` way."""
    heun = make_sampler("ode_heun", pipe.scheduler)
    heun = type(heun).from_config(heun.config, denoise=False)
    heun.set_timesteps(num_steps, inverse=inverse)
    for tau in heun.timesteps.tolist():
        timestep = torch.tensor(tau, device=x.device)
        output = pipe.unet(x.to(pipe.unet.dtype), timestep, class_labels=labels, return_dict=False)[0]
        x = heun.step(output[:, : x.shape[1]].to(x.dtype), tau, x).prev_sample
    return x


def to_model(pipe: DDPMPipeline, images: Any) -> Tensor:
    """Return images, or points in data coordinates, in model coordinates, float32 on the network's device."""
    shape, device = pipe._shape(), pipe._execution_device                              # (C, H, W) or (2,)
    if not in_plane(pipe.unet):
        channels, height, width = shape
        return prepared(checked(images), channels, height, width, device)
    points = torch.as_tensor(images, dtype=torch.float32, device=device)
    if points.ndim != 2 or points.shape[1:] != shape or not len(points):
        raise ConfigError(f"points must have shape [B, {shape[0]}], got {list(points.shape)}")
    mean, std = (points.new_tensor(pipe.unet.config[key]) for key in ("data_mean", "data_std"))
    return (points - mean) / std
