"""Sampling by denoising in the latents of an autoencoder (Rombach et al. 2022)."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError
from hfgen.images import LATENT, as_output, check_output_type
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.unet import UNet
from hfgen.pipelines.base import output_or_tuple, saved_pair
from hfgen.pipelines.denoising import DenoisingPipeline
from hfgen.pipelines.outputs import ImageOutput
from hfgen.schedulers.ddpm import DDPMScheduler


class LatentDiffusionPipeline(DenoisingPipeline):
    """Images from noise in latents: a U-Net predicts the noise, a scheduler removes it, a decoder makes the image.

    The U-Net can be conditioned on classes, and on texts through `text_encoder` and `tokenizer`. Any scheduler of
    diffusers can replace the pipeline's own. States and `latents` are (B, D, h, w); `decode(latents)` makes images of
    them.
    """

    default_steps = 50
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
        self._register_unet(unet, text_encoder, tokenizer, null_condition, vae=vae, scheduler=scheduler)

    def stock_twin(self) -> str | None:
        """Return "StableDiffusionPipeline" for a model of texts that it samples alike, else None.

        The model is conditioned on texts alone, and was also trained without them. The autoencoder has no shift
        (`hfgen.models.fold_shift`), the scheduler starts at timestep 1 (`steps_offset`), and the sides of the images
        are multiples of 8, as Stable Diffusion requires.
        """
        if self.text_encoder is None or not self.config["null_condition"]:
            return None
        vae, scheduler = self.vae.config, self.scheduler.config
        same = (
            all(saved_pair(part)[0] == "diffusers" for part in (self.vae, self.unet, self.scheduler)),
            self.num_classes is None,
            not vae["shift_factor"] and vae["latents_mean"] is None,
            scheduler.get("steps_offset") == 1 and not scheduler.get("clip_sample"),
            all(side % 8 == 0 for side in self._image_shape()[1:]),
        )
        return "StableDiffusionPipeline" if all(same) else None

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil", return_dict: bool = True) -> Any:
        """Return the images, `.images`, of latents (B, D, h, w) such as a state: arrays and tensors are in [0, 1]."""
        check_output_type(output_type)
        images = self._rendered(latents, output_type)
        return output_or_tuple(ImageOutput(images=images), return_dict)

    def _rendered(self, x_0: Tensor, output_type: str, image: Any = None, mask: Any = None) -> Any:
        """Return the images of latents x_0, or x_0 for "latent"; outside the `mask` they are the pixels of `image`."""
        if output_type == LATENT:
            return x_0
        x = self._images(x_0)
        if mask is not None:
            x = torch.where(self._missing(mask, len(x)), x, self._pixels(image).to(x))
        return as_output(x, output_type)

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
