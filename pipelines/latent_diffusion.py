"""Sampling by denoising in the latents of an autoencoder (Rombach et al. 2022), told a class or a text, or an image."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError
from hfgen.images import as_output, check_output_type
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.unet import UNet
from hfgen.pipelines.base import Generators
from hfgen.pipelines.denoising import EVERYWHERE, DenoisingPipeline, Interval, Labels, Prompt
from hfgen.schedulers.ddpm import DDPMScheduler

STEPS = 50
"""Steps of the pipeline's own scheduler where neither a number nor a sampler is given."""


class LatentDiffusionPipeline(DenoisingPipeline):
    """Images from noise in latents: a U-Net that predicts it, a scheduler that takes it away, a decoder for the end.

    The U-Net may know classes, and texts through `text_encoder` and `tokenizer`. Any scheduler of diffusers may be put
    in. States are latents; `decode(latents)` shows them.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet | ConditionalUNet,
        scheduler: DDPMScheduler,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        null_condition: bool = False,
    ) -> None:
        super().__init__()
        if vae.config["latent_channels"] != unet.config["in_channels"]:
            raise ConfigError(f"unet takes {unet.config['in_channels']} channels, the latents of the vae have "
                              f"{vae.config['latent_channels']}")  # fmt: skip
        self._register(unet, text_encoder, tokenizer, null_condition, vae=vae, scheduler=scheduler)

    def __call__(
        self,
        prompt: Prompt = None,
        class_labels: Labels = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        batch_size: int = 1,
        latents: Tensor | None = None,
        generator: Generators = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        guidance_interval: Interval = EVERYWHERE,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        `prompt`: a text for all or one for each; None is the empty text. `class_labels`: an int for all or one for
        each; None is the null class, where that was trained. Lists, `latents` (B, D, h, w) and `image` decide the
        batch; else it is `batch_size`. `num_steps` is an int in [1, T]; None is num_steps=50, with a
        `sampler` the number that is usual for it, but never more than T.

        `guidance_scale` w: 1 for none, by default 3 where the model can be guided; `guidance_interval`, in [0, 1] from
        the image to pure noise, is where it acts; `guidance_rescale` in [0, 1] is that of Lin et al. 2023.
        `negative_prompt` is what guidance leads away from.

        `image`: PIL images or a tensor in [0, 1] that sampling starts from, with noise of the last `strength` of the
        steps, in (0, 1], by default 0.8 (Meng et al. 2022). `mask`: what of it is painted anew, the rest stays: white,
        or 1; strength is then 1 by default.

        `generator`: one, or a list with one for each sample, whose noise then does not depend on the batch. `sampler`
        and `eta` as of `DDPMPipeline`. Errors: ConfigError, which is a ValueError.
        """
        check_output_type(output_type)
        states = self.states(
            prompt, class_labels, num_steps, guidance_scale, negative_prompt, batch_size, latents, generator, image,
            strength, mask, guidance_interval, guidance_rescale, sampler, eta,
        )  # fmt: skip
        for z in states:  # noqa: B007
            pass                                                                        # only the last is kept
        x = self._images(z)
        if mask is not None:
            given = self._pixels(image).to(x)
            x = torch.where(self._missing(mask, len(x)), x, given)                   # the rest is as it was
        return self._output(as_output(x, output_type), return_dict)

    def states(
        self,
        prompt: Prompt = None,
        class_labels: Labels = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        batch_size: int = 1,
        latents: Tensor | None = None,
        generator: Generators = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        guidance_interval: Interval = EVERYWHERE,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        eta: float = 0.0,
    ) -> Iterator[Tensor]:
        """Return an iterator over the latents x_T, ..., x_0, each (B, D, h, w); `decode` makes images of them.

        Arguments are those of a call, and are checked at once.
        """
        return self._sampled(
            batch_size=batch_size, num_steps=num_steps, class_labels=class_labels, generator=generator,
            sampler=sampler, eta=eta, latents=latents, prompt=prompt, guidance_scale=guidance_scale,
            negative_prompt=negative_prompt, image=image, strength=strength, mask=mask,
            guidance_interval=guidance_interval, guidance_rescale=guidance_rescale,
        )  # fmt: skip

    def _steps(self, scheduler: Any, num_steps: int | None, sampler: str | None) -> int:
        if num_steps is None and sampler is None:
            num_steps = min(STEPS, int(scheduler.config.num_train_timesteps))
        return super()._steps(scheduler, num_steps, sampler)

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil", return_dict: bool = True) -> Any:
        """Return the images of latents (B, D, h, w), such as a state, `.images`."""
        check_output_type(output_type)
        images = as_output(self._images(latents), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _image_shape(self) -> tuple[int, ...]:
        _, height, width = self._shape()
        return self.vae.config["in_channels"], height * self.vae.factor, width * self.vae.factor

    @torch.no_grad()
    def _encoded(self, pixels: Tensor) -> Tensor:
        z: Tensor = self.vae.to_latents(pixels.to(self.vae.dtype))
        return z

    @torch.no_grad()
    def _images(self, latents: Tensor) -> Tensor:
        x: Tensor = self.vae.from_latents(latents.to(self.vae.device, self.vae.dtype)).float()
        return x
