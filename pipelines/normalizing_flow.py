"""Normalizing flows: images from latents z ~ N(0, I) by an invertible map, latents from images, exact densities."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.checks import check_int, require_int, require_number
from hfgen.errors import ConfigError
from hfgen.images import LATENT, as_output, check_output_type
from hfgen.models.tarflow import TarFlow
from hfgen.pipelines.base import ClassLabels, Generators, check_generator
from hfgen.pipelines.conditional import EVERYWHERE, ConditionalPipeline
from hfgen.pipelines.entries import conditions_of
from hfgen.pipelines.generative import merge_steps, with_arguments_of
from hfgen.pipelines.guidance import Guide
from hfgen.pipelines.inputs import checked, common_batch, prepared, repeated
from hfgen.pipelines.step_end import LATENTS, Callback, StepEnd
from hfgen.pipelines.text_conditional import Prompt, first_argument


class NormalizingFlowPipeline(ConditionalPipeline):
    """Images x = f^-1(z) of latents z ~ N(0, I), by a flow of causal transformers (TarFlow, Zhai et al. 2025).

    The density is exact: log p(x|y) = log N(f(x); 0, I) + log |det df/dx|. `levels`: grey levels of the training data,
    whose pixels were dequantised. `noise_std`: standard deviation of the Gaussian noise that training added to them.
    """

    model_cpu_offload_seq = "text_encoder->network"
    default_guidance = 1.0

    def __init__(
        self,
        network: TarFlow,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        null_condition: bool = False,
        levels: int = 256,
        noise_std: float = 0.0,
    ) -> None:
        super().__init__()
        require_int("levels", levels, 2, 2**16)
        require_number("noise_std", noise_std, 0, 10)
        text = network.config.get("text_width") is not None
        self._register("network", network, text, text_encoder, tokenizer, null_condition)
        self.register_to_config(levels=levels, noise_std=noise_std)

    @property
    def conditioned(self) -> Any:
        """Return the flow."""
        return self.network

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image."""
        return tuple(self.network.shape)

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return [LATENTS]

    def states(
        self,
        first: int | Prompt = None,
        /,
        *,
        batch_size: int = 1,
        num_steps: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        class_labels: ClassLabels = None,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int | None = 1,
        guidance_scale: float | None = None,
        latents: Tensor | None = None,
        use_cache: bool = True,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Iterator[Tensor]:
        """Return an iterator over the latents z and the outputs of each inverse block, (B, C, H, W); images in about
        [-1, 1] are the last.

        They still have the noise that training added. `__call__` explains the arguments; all are checked before the
        first state.
        """
        batch_size, prompt = first_argument(first, batch_size, prompt)
        self._check_steps(merge_steps(num_steps, num_inference_steps))
        require_number("temperature", temperature, 0, 1e3)
        # batch
        times = 1 if num_images_per_prompt is None else check_int("num_images_per_prompt", num_images_per_prompt, 1)
        B = common_batch(batch_size, prompt=prompt, class_labels=class_labels)
        prompt, negative_prompt, class_labels = (
            repeated(given, B, times) for given in (prompt, negative_prompt, class_labels)
        )
        B = common_batch(B * times, latents=latents)
        check_generator(generator, B)
        # conditions
        guide = self._guide(prompt, negative_prompt, class_labels, B, guidance_scale, EVERYWHERE, 0.0)
        end = StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        # latents
        z = self._latents(latents, B, temperature, generator)
        self._interrupt, self._guidance_scale, self._num_timesteps = False, guide.scale, len(self.network.flow)
        return self._inverted(z, guide, use_cache, end)

    @with_arguments_of(states)
    def __call__(
        self, first: int | Prompt = None, /, *, denoise: bool = True, output_type: str = "pil",
        return_dict: bool = True, **settings: Any,
    ) -> ImagePipelineOutput | tuple[Any]:  # fmt: skip
        """Return samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        `output_type`: "pil", "np" (or "numpy"), "pt", or "latent" for the flow's output (B, C, H, W) itself. `denoise`:
        remove the noise that training added: a step x + sigma^2 grad log p(x) against Gaussian noise (Zhai et al. 2025,
        section 2.4), then rounding to the nearest level of the training data.

        Batch. The first argument is `batch_size` if it is an int, `prompt` if it is a text or a list. `batch_size`:
        number of samples B; lists and `latents` determine it too. `num_images_per_prompt`: number of samples for each
        prompt, or for each of `batch_size`. `generator`: one, or a list with one for each sample, whose latents then do
        not depend on the batch. `latents`: z (B, C, H, W) in the place of draws, such as those of `invert`.

        Draws. `num_steps` (`num_inference_steps` in diffusers): the number of blocks times that of patches is the only
        value. `temperature` >= 0: standard deviation of z. `use_cache`: keep keys and values of all patches in memory,
        so that each step computes one patch. `callback_on_step_end`: function(pipeline, step, timestep, tensors) after
        each block, with its output as "latents"; `pipeline._interrupt = True` ends sampling.

        Conditions. `class_labels`: an int for all samples, or one int for each. `prompt`: a text for all, or one for
        each. `negative_prompt`: the text of the unconditional prediction. `guidance_scale`: w >= 0 of the scales and
        shifts u + w (c - u) of each patch. Default: 1 (no guidance). Raises ConfigError, a ValueError.
        """
        check_output_type(output_type, latent=True)
        for x in self.states(first, **settings):  # noqa: B007
            pass                                                                        # only the last is kept
        if output_type == LATENT:
            return self._output(x, return_dict)
        if denoise:
            x = self.denoised(x, settings.get("class_labels"), self._prompt(first, settings))
        return self._output(as_output(x.clamp(-1, 1), output_type), return_dict)

    @torch.no_grad()
    def invert(self, image: Any, class_labels: ClassLabels = None, prompt: Prompt = None) -> Tensor:
        """Return the latents z = f(x) of images, (B, C, H, W): `latents` from which the same images are sampled.

        `image`: PIL images, a tensor (B, C, H, W) or an array (B, H, W, C) in [0, 1]. Conditions must be those of
        sampling, without guidance. Raises ConfigError.
        """
        x = self._pixels(image)
        latents: Tensor = self.network(x, **self._conditions(class_labels, prompt, len(x))).latents
        self.maybe_free_model_hooks()
        return latents

    @torch.no_grad()
    def log_likelihood(self, image: Any, class_labels: ClassLabels = None, prompt: Prompt = None) -> Tensor:
        """Return the log-density log p(x|y) of images x in [-1, 1], (B,) float64, in nats, exact.

        `image`: as in `invert`; pixels may leave [0, 1], as dequantised ones do. Raises ConfigError.
        """
        x = self._pixels(image, noisy=True)
        log_p: Tensor = self.network(x, **self._conditions(class_labels, prompt, len(x))).log_prob
        self.maybe_free_model_hooks()
        return log_p.double().cpu()

    def denoised(self, x: Tensor, class_labels: ClassLabels = None, prompt: Prompt = None) -> Tensor:
        """Return images x (B, C, H, W), in about [-1, 1], without the noise that training added to its images.

        Against Gaussian noise of standard deviation sigma, x + sigma^2 grad log p(x), the mean of clean images (Zhai et
        al. 2025, eq. 9); against dequantisation the nearest level.
        """
        # Gaussian noise
        if self.config["noise_std"]:
            conditions = self._conditions(class_labels, prompt, len(x))
            with torch.enable_grad():
                noisy = x.detach().clone().requires_grad_()
                (score,) = torch.autograd.grad(self.network(noisy, **conditions).log_prob.sum(), noisy)
            x = x + self.config["noise_std"] ** 2 * score
        # levels
        top = self.config["levels"] - 1
        return ((x.clamp(-1, 1) + 1) * (top / 2)).round() * (2 / top) - 1

    def _prompt(self, first: Any, settings: dict[str, Any]) -> Prompt:
        """Return the prompt of a call, of which it may be the first argument."""
        return settings.get("prompt") if first is None or isinstance(first, int) else first

    def _conditions(self, class_labels: ClassLabels, prompt: Prompt, B: int) -> dict[str, Tensor | None]:
        """Return the network's conditions of B images, checked; those of one are repeated."""
        n = common_batch(1, class_labels=class_labels, prompt=prompt)
        times = max(1, B // n)
        class_labels, prompt = (repeated(given, n, times) for given in (class_labels, prompt))
        return self._guide(prompt, None, class_labels, B, 1.0, EVERYWHERE, 0.0).cond

    def _pixels(self, image: Any, noisy: bool = False) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1], with the size and the channels of the samples."""
        channels, height, width = self.sample_shape
        x = prepared(checked(image, "image", noisy), channels, height, width, self._execution_device)
        return x.to(self.network.dtype)

    def _check_steps(self, num_steps: Any) -> None:
        """Raise ConfigError unless the number of steps is that of all patches of all blocks, or None."""
        blocks, patches = len(self.network.flow), self.network.num_patches
        if num_steps is not None and check_int("num_steps", num_steps, 1) != blocks * patches:
            raise ConfigError(f"num_steps must be {blocks * patches}, {patches} patches in each of {blocks} blocks, or "
                              f"left out; got {num_steps}")  # fmt: skip

    def _latents(self, latents: Any, B: int, temperature: float, generator: Generators) -> Tensor:
        """Return z (B, C, H, W) on the device, given or drawn."""
        shape, device = (B, *self.sample_shape), self._execution_device
        if latents is None:
            return temperature * randn_tensor(shape, generator=generator, device=device, dtype=self.network.dtype)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ConfigError(f"latents must be a tensor of shape {list(shape)}, got {given}")
        return latents.to(device, self.network.dtype)

    @torch.no_grad()
    def _inverted(self, z: Tensor, guide: Guide, use_cache: bool, end: StepEnd | None) -> Iterator[Tensor]:
        """Yield z (B, C, H, W), then the inputs of each block, from the last to the first."""
        yield z
        for step, block in enumerate(self.progress_bar(list(reversed(range(len(self.network.flow)))))):
            z = self.network.inverse(z, block, **conditions_of(guide), scale=guide.scale, use_cache=use_cache)
            if end is not None:
                z, guide = end.call(self, step, torch.tensor(block), z, guide)
            yield z
            if self._interrupt:
                return
