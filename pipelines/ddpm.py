"""Sampling by denoising (Ho et al. 2020), of images and of points in the plane."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from hfgen.errors import ConfigError
from hfgen.images import check_output_type
from hfgen.models.mlp import MLPDenoiser
from hfgen.models.unet import UNet
from hfgen.pipelines.base import Generators, Pipeline, check_generator, check_int, check_labels
from hfgen.pipelines.outputs import decode, in_plane
from hfgen.registry import saved_name
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.samplers import OWN, SAMPLERS, make_sampler


class DDPMPipeline(Pipeline):
    """Images, or points, from noise: a network that predicts it and a scheduler that takes it away step by step.

    The methods of `hfgen.schedulers.samplers` go by name: `pipe(sampler="dpmpp_2m")`. Any scheduler of diffusers may be
    put in: `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet | MLPDenoiser | UNet2DModel, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def stock_twin(self) -> str | None:
        """Return "DDPMPipeline" for a U-Net without classes and a stock scheduler, which that can run; else None."""
        config = self.unet.config
        labelled = config.num_class_embeds is not None or config.get("class_embed_type") is not None
        ours = saved_name(type(self.scheduler).__name__)[0] != "diffusers"
        return None if labelled or ours or in_plane(self.unet) else "DDPMPipeline"

    def __call__(
        self,
        batch_size: int = 1,
        num_steps: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return `batch_size` samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        Of a network for the plane `.images` is (B, 2) in data coordinates, an array (a tensor for "pt").
        `num_steps` is an int in [1, T] and defaults to all T steps of training, or to what is usual for the `sampler`;
        schedulers in continuous time take more than T as well. `class_labels`: an int for all or one for each sample,
        required exactly if the network knows classes. `generator`: one, or a list with one for each sample, whose noise
        then does not depend on the batch. `sampler`: a name of `hfgen.schedulers.samplers.SAMPLERS`; by default the
        pipeline's own scheduler. `eta` in [0, 1]: the noise of DDIM. `latents`: x_T in the place of noise, batch_size
        of them. Errors: ConfigError, which is a ValueError.
        """
        check_output_type(output_type)
        for x in self.states(batch_size, num_steps, class_labels, generator, sampler, eta, latents):  # noqa: B007
            pass                                                                        # only the last is kept
        return self._output(decode(x, self.unet, output_type), return_dict)

    def states(
        self,
        batch_size: int = 1,
        num_steps: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        generator: Generators = None,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Return an iterator over x_T, ..., x_0 (Ho et al. 2020, algorithm 2), each (B, C, H, W) or (B, 2).

        Arguments are those of a call, and are checked at once; the values are in model coordinates.
        """
        scheduler = self.scheduler if sampler is None else make_sampler(sampler, self.scheduler)
        steps = self._steps(scheduler, num_steps, sampler)
        check_int("batch_size", batch_size, 1)
        check_generator(generator, batch_size)
        choices = {"generator": generator, **checked_eta(eta, scheduler)}
        labels, device = self._labels(class_labels, batch_size), self._execution_device
        labels = None if labels is None else labels.to(device)
        dtype = torch.promote_types(self.unet.dtype, torch.float32)        # of the states, whatever the network's
        shape = (batch_size, *self._shape())
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ConfigError(f"latents must have shape {list(shape)}, got {list(latents.shape)}")
        times = self._times(scheduler, steps, device)
        return self._denoise(latents.to(device, dtype), times, labels, scheduler, choices)

    def _steps(self, scheduler: Any, num_steps: int | None, sampler: str | None) -> int:
        T = int(scheduler.config.num_train_timesteps)
        high = None if type(scheduler).__name__ == "VPSDEScheduler" else T
        if num_steps is None:
            return T if sampler is None else min(T, SAMPLERS[sampler].steps)
        return check_int("num_steps", num_steps, 1, high)

    @torch.no_grad()
    def _denoise(
        self,
        x: torch.Tensor,
        times: list[tuple[Any, torch.Tensor]],
        labels: torch.Tensor | None,
        scheduler: Any,
        choices: dict[str, Any],
    ) -> Iterator[torch.Tensor]:
        dtype, taken = self.unet.dtype, inspect.signature(scheduler.step).parameters
        choices = {name: value for name, value in choices.items() if name in taken}
        wants_variance = type(scheduler).__name__.startswith("DDPM")
        x = x * scheduler.init_noise_sigma
        yield x
        for t, on_device in self.progress_bar(times):
            x_in = scheduler.scale_model_input(x, t).to(dtype)
            eps = self.unet(x_in, on_device, class_labels=labels, return_dict=False)[0].to(x.dtype)
            if not wants_variance:
                eps = eps[:, : x.shape[1]]                                 # without the half that is the variance
            x = scheduler.step(eps, t, x, return_dict=False, **choices)[0]
            yield x

    def _times(self, scheduler: Any, steps: int, device: torch.device) -> list[tuple[Any, torch.Tensor]]:
        """Return the times to visit, each for the scheduler and for the network, so that no step waits for a device.

        hfgen's schedulers count in Python numbers, others in tensors; the network gets tensors on its device, always.
        """
        own = type(scheduler).__name__ in OWN and type(scheduler).__module__.startswith("hfgen.")
        scheduler.set_timesteps(steps, device="cpu" if own else device)
        times = scheduler.timesteps
        return list(zip(times.tolist() if own else times, times.to(device), strict=True))

    def _labels(self, labels: Any, batch_size: int) -> torch.Tensor | None:
        if self.unet.config.get("class_embed_type") is not None:       # times or embeddings, for the network to check
            return None if labels is None else torch.as_tensor(labels)
        return check_labels(labels, self.unet.config.num_class_embeds, batch_size)

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: (C, H, W) or (2,)."""
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if in_plane(self.unet):
            return (channels,)
        if size is None:
            raise ConfigError("unet.config.sample_size is None; set it to the images' side or (height, width)")
        return (channels, size, size) if isinstance(size, int) else (channels, *size)


def checked_eta(eta: Any, scheduler: Any) -> dict[str, float]:
    """Return {"eta": eta} where the scheduler's steps take it; ConfigError if it is outside [0, 1], or of no use."""
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise ConfigError(f"eta must be a number in [0, 1], got {eta!r}")
    if "eta" in inspect.signature(scheduler.step).parameters:
        return {"eta": float(eta)}
    if eta:
        raise ConfigError(f"eta is the noise of DDIM: {type(scheduler).__name__} has none; use sampler 'ddim'")
    return {}
