"""Base class of the pipelines that denoise: arguments, conditions, the initial state, the steps from noise to data."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.checks import check_int
from hfgen.errors import ConfigError
from hfgen.images import check_output_type
from hfgen.pipelines.base import ClassLabels, Generators, check_generator
from hfgen.pipelines.conditional import EVERYWHERE, ConditionalPipeline, Interval
from hfgen.pipelines.generative import merge_steps, with_arguments_of
from hfgen.pipelines.guidance import Guide, guided, scale_at
from hfgen.pipelines.inputs import checked, checked_eta, common_batch, prepared, prepared_mask, repeated, share_of
from hfgen.pipelines.outputs import decode, in_plane
from hfgen.pipelines.step_end import Callback, StepEnd
from hfgen.pipelines.text_conditional import Prompt, first_argument
from hfgen.schedulers.samplers import SAMPLERS, make_sampler
from hfgen.schedulers.traits import traits_of


@dataclass(frozen=True)
class InitialState:
    """Initial state of sampling: noise `eps` (B, ...), and for image-to-image the clean state `x_0` of the image.

    `mask` (B or 1, 1, h, w): 1 where the image is inpainted, 0 where it is kept; None inpaints everything.
    """

    eps: Tensor
    x_0: Tensor | None = None
    mask: Tensor | None = None


class DenoisingPipeline(ConditionalPipeline):
    """Base of the pipelines that denoise: any scheduler, conditioned on classes or texts, from noise or an image."""

    model_cpu_offload_seq = "text_encoder->unet"
    default_steps: int | None = None
    """Number of steps of the pipeline's own scheduler if the caller gives none. None: all T steps of training."""

    def _register_unet(
        self, unet: Any, text_encoder: CLIPTextModel | None, tokenizer: CLIPTokenizer | None, null_condition: bool,
        **parts: Any,
    ) -> None:  # fmt: skip
        text = unet.config.get("cross_attention_dim") is not None
        self._register("unet", unet, text, text_encoder, tokenizer, null_condition, **parts)

    @property
    def conditioned(self) -> Any:
        """Return the U-Net, or the network of points, that predicts the noise."""
        return self.unet

    def states(
        self,
        first: int | Prompt = None,
        /,
        *,
        batch_size: int = 1,
        num_steps: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        class_labels: ClassLabels = None,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int | None = 1,
        guidance_scale: float | None = None,
        guidance_interval: Interval = EVERYWHERE,
        guidance_rescale: float = 0.0,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        latents: Tensor | None = None,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Iterator[Tensor]:
        """Return an iterator over x_T, ..., x_0 (Ho et al. 2020, algorithm 2) in model coordinates.

        Each state is (B, C, H, W) for images scaled to [-1, 1], (B, 2) for points, or (B, D, h, w) for latent
        diffusion, whose `decode` returns the images of a state. `__call__` explains the arguments; all are checked
        before the first state.
        """
        batch_size, prompt = first_argument(first, batch_size, prompt)
        # steps
        scheduler = self.scheduler if sampler is None else make_sampler(sampler, self.scheduler)
        number = merge_steps(num_steps, num_inference_steps)
        steps = self._set_timesteps(scheduler, number, sampler, timesteps=timesteps, sigmas=sigmas)
        choices = {"generator": generator, **checked_eta(eta, scheduler)}
        # batch
        pixels = None if image is None else self._pixels(image)
        B = common_batch(batch_size, prompt=prompt, class_labels=class_labels, image=pixels)
        n = 1 if num_images_per_prompt is None else check_int("num_images_per_prompt", num_images_per_prompt, 1)
        prompt, negative_prompt, class_labels, pixels, mask = (
            repeated(given, B, n) for given in (prompt, negative_prompt, class_labels, pixels, mask)
        )
        B = common_batch(B * n, latents=latents)
        check_generator(generator, B)
        # conditions
        choice = (guidance_scale, guidance_interval, guidance_rescale)
        guide = self._guide(prompt, negative_prompt, class_labels, B, *choice)
        end = StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        # initial state
        share = share_of(strength, image, mask)
        eps = self._noise(latents, B, generator)
        inpainted = x_0 = None
        if mask is not None:
            inpainted = F.adaptive_max_pool2d(self._missing(mask, B).to(eps), eps.shape[2:])
        if pixels is not None:
            x_0 = self._encoded(pixels).to(eps).expand_as(eps)
        times = self._times(scheduler, steps, share)
        self._interrupt, self._guidance_scale, self._num_timesteps = False, guide.scale, len(times)
        return self._denoise(InitialState(eps, x_0, inpainted), times, guide, scheduler, choices, end)

    @with_arguments_of(states)
    def __call__(
        self, first: int | Prompt = None, /, *, output_type: str = "pil", return_dict: bool = True, **settings: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        For a model of points `.images` is (B, 2) in data coordinates, an array (a tensor for "pt"). `output_type`:
        "pil", "np" (or "numpy"), "pt", or "latent" for the last state, with the shape and range of a state.

        Batch. The first argument is `batch_size` if it is an int, `prompt` if it is a text or a list. `batch_size`:
        number of samples B; lists, `latents` and `image` determine it too. `num_images_per_prompt`: number of samples
        for each prompt, or for each of `batch_size`, one after the other. `latents`: x_T in the place of noise, with
        the shape of a state. `generator`: one, or a list with one for each sample, whose noise then does not depend on
        the batch.

        Steps. `num_steps` (`num_inference_steps` in diffusers): an int in [1, T], or >= 1 for a scheduler in continuous
        time. Default: the usual number of the `sampler`, at most T; T without a sampler (50 for latent diffusion).
        `timesteps` or `sigmas`: the steps themselves, for schedulers whose `set_timesteps` takes them. `sampler`: a
        name in `hfgen.schedulers.samplers.SAMPLERS`. Default: the pipeline's own scheduler. `eta`: noise of DDIM, in
        [0, 1]. `callback_on_step_end`: function(pipeline, step, timestep, tensors) after each step; it returns the
        tensors that it replaces, may set `pipeline._interrupt = True` to stop, and `pipeline._guidance_scale`.
        `callback_on_step_end_tensor_inputs`: the tensors that it receives. Default: "latents", the state.

        Conditions. `class_labels`: an int for all samples, or one int for each. `prompt`: a text for all, or one for
        each. A network that is conditioned on them requires them, unless it was also trained without them: None is then
        the null class and the empty text. `negative_prompt`: the text of the unconditional prediction.
        `guidance_scale`: w in u + w (c - u); 1 is off. Default: 3 (1 for points, and for models that cannot be guided).
        `guidance_interval`: (low, high) in [0, 1], the noise levels with guidance; 1 is pure noise. `guidance_rescale`:
        phi in [0, 1] (Lin et al. 2023, eq. 16).

        Image to image. `image`: PIL images, a tensor (B, C, H, W) or an array (B, H, W, C) in [0, 1]; sampling starts
        from them with noise, and takes the last `strength` of the steps (Meng et al. 2022). `strength`: in (0, 1].
        Default: 0.8 (1 with a mask). `mask`: 1, or white, where the image is inpainted, 0 where it is kept. Raises
        ConfigError, a ValueError.
        """
        check_output_type(output_type, latent=True)
        for x in self.states(first, **settings):  # noqa: B007
            pass                                                                        # only the last is kept
        images = self._rendered(x, output_type, settings.get("image"), settings.get("mask"))
        return self._output(images, return_dict)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample, (C, H, W) or (2,); ConfigError if the unet has no `sample_size`."""
        return self._image_shape()

    @property
    def points(self) -> bool:
        """Return whether the unet denoises points in the plane."""
        return in_plane(self.unet)

    @torch.no_grad()
    def _denoise(
        self, start: InitialState, times: list[tuple[Any, Tensor]], guide: Guide, scheduler: Any,
        choices: dict[str, Any], end: StepEnd | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield the states x_T (or a noisy image), ..., x_0, each shaped like `start.eps`.

        `choices`: arguments of the scheduler's `step`; those that it does not have are left out. `end`: callback.
        """
        accepted, T = inspect.signature(scheduler.step).parameters, scheduler.config.num_train_timesteps
        choices = {name: value for name, value in choices.items() if name in accepted}
        predicts_variance = traits_of(scheduler).predicts_variance
        dtype, eps = self.unet.dtype, start.eps
        # x_T, or the noisy image
        x = eps * scheduler.init_noise_sigma
        if start.x_0 is not None:
            x = scheduler.add_noise(start.x_0, eps, times[0][1].expand(len(eps)))
        yield x
        for i, (t, on_device) in enumerate(self.progress_bar(times)):
            def predict(x_in: Tensor, now: Tensor = on_device, **conditions: Tensor | None) -> Tensor:
                return self.unet(x_in.to(dtype), now, return_dict=False, **conditions)[0].to(eps.dtype)

            # guided prediction
            scale = scale_at(guide.scale, guide.interval, float(t), T)
            x_in = scheduler.scale_model_input(x, t)
            prediction = guided(predict, x_in, guide.cond, guide.uncond, scale, guide.rescale)
            if not predicts_variance:
                prediction = prediction[:, : x.shape[1]]                   # without the half that is the variance
            # x_{t-1}
            x = scheduler.step(prediction, t, x, return_dict=False, **choices)[0]
            # outside the mask: the image itself, with the noise of the next timestep
            if start.mask is not None and start.x_0 is not None:
                known = start.x_0
                if i < len(times) - 1:
                    known = scheduler.add_noise(start.x_0, eps, times[i + 1][1].expand(len(eps)))
                x = torch.where(start.mask > 0, x, known)
            # callback
            if end is not None:
                x, guide = end.call(self, i, on_device, x, guide)
            yield x
            if self._interrupt:
                return

    def _set_timesteps(self, scheduler: Any, number: Any, sampler: str | None, **given: Any) -> int:
        """Return the number of steps, after they have been set: `number`, or the timesteps or sigmas in `given`.

        Default: depends on the sampler. Raises ConfigError if several are given, if the scheduler takes no such list,
        and if a multistep scheduler would take two equal timesteps.
        """
        lists = {kind: value for kind, value in given.items() if value is not None}
        traits, name = traits_of(scheduler), type(scheduler).__name__
        device = "cpu" if traits.on_cpu else self._execution_device
        # a number of steps, or the steps themselves
        if not lists:
            steps = self._number_of_steps(scheduler, number, sampler)
            scheduler.set_timesteps(steps, device=device)
        else:
            kind = _only_one({**lists, "num_steps": number})
            if kind not in inspect.signature(scheduler.set_timesteps).parameters:
                raise ConfigError(f"{kind} must be None with {name}, which takes a number of steps alone")
            scheduler.set_timesteps(device=device, **lists)
            order = getattr(scheduler, "order", 1)
            steps = (len(scheduler.timesteps) + order - 1) // order
        # two equal noise levels: no step between them
        if traits.multistep and len(scheduler.timesteps.unique()) < len(scheduler.timesteps):
            raise ConfigError(f"num_steps must be smaller with {name}, got {steps}: it rounds two steps to the same "
                              "timestep")  # fmt: skip
        return steps

    def _number_of_steps(self, scheduler: Any, num_steps: Any, sampler: str | None) -> int:
        """Return the number of steps, checked; the default depends on the sampler."""
        T = int(scheduler.config.num_train_timesteps)
        if num_steps is not None:
            return check_int("num_steps", num_steps, 1, None if traits_of(scheduler).continuous else T)
        if sampler is not None:
            return min(T, SAMPLERS[sampler].steps)
        return min(T, self.default_steps or T)

    def _times(self, scheduler: Any, steps: int, share: float) -> list[tuple[Any, Tensor]]:
        """Return the last `share` of the timesteps, each as the scheduler and as the network takes it.

        hfgen's schedulers take Python numbers, those of diffusers tensors, and the network takes tensors on its device:
        no step waits for a device.
        """
        times, on_cpu = scheduler.timesteps, traits_of(scheduler).on_cpu
        left_out = (steps - max(1, round(share * steps))) * getattr(scheduler, "order", 1)
        if left_out and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(left_out)
        pairs = zip(times.tolist() if on_cpu else times, times.to(self._execution_device), strict=True)
        return list(pairs)[left_out:]

    def _noise(self, latents: Any, B: int, generator: Generators) -> Tensor:
        """Return x_T for B samples, `latents` or a draw from N(0, I), in float32 or a wider dtype of the network."""
        shape, device = (B, *self._shape()), self._execution_device
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ConfigError(f"latents must be a tensor of shape {list(shape)}, got {given}")
        return latents.to(device, dtype)

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of one state: (C, H, W) or (2,)."""
        size, channels = self.unet.config["sample_size"], self.unet.config["in_channels"]
        if self.points:
            return (channels,)
        if size is None:
            raise ConfigError("unet.config.sample_size is None; set it to the side or (height, width) of its input")
        if isinstance(size, int):
            size = (size, size)
        return (channels, *size)

    def _image_shape(self) -> tuple[int, ...]:
        """Return the shape of one image, (C, H, W), or of one point, (2,)."""
        return self._shape()

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Return the states x_0 of images (B, C, H, W) in [-1, 1]."""
        return pixels

    def _rendered(self, x_0: Tensor, output_type: str, image: Any = None, mask: Any = None) -> Any:
        """Return states x_0 as images of the `output_type`, or as points in data coordinates."""
        return decode(x_0, self.unet, output_type)

    def _pixels(self, image: Any) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1], with the size and the channels of the samples."""
        if self.points:
            raise ConfigError("image must be None, this model makes points")
        channels, height, width = self._image_shape()
        return prepared(checked(image, "image"), channels, height, width, self._execution_device)

    def _missing(self, mask: Any, B: int) -> Tensor:
        """Return the mask of inpainted pixels, bool (B, 1, H, W) or (1, 1, H, W)."""
        _, height, width = self._image_shape()
        return prepared_mask(mask, B, height, width, self._execution_device)


def _only_one(given: dict[str, Any]) -> str:
    """Return the name of the one argument that is given, not None; ConfigError if there are several."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(f"give one of {', '.join(given)}; got {' and '.join(names)}")
    return names[0]
