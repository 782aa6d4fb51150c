"""Sampling by denoising (Ho et al. 2020), of images and of points in the plane."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.images import check_output_type
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.mlp import MLPDenoiser
from hfgen.models.unet import UNet
from hfgen.pipelines.base import Generators
from hfgen.pipelines.denoising import EVERYWHERE, DenoisingPipeline, Interval, Labels, Prompt
from hfgen.pipelines.outputs import decode
from hfgen.registry import saved_name
from hfgen.schedulers.ddpm import DDPMScheduler


class DDPMPipeline(DenoisingPipeline):
    """Images, or points, from noise: a network that predicts it and a scheduler that takes it away step by step.

    The methods of `hfgen.schedulers.samplers` go by name: `pipe(sampler="dpmpp_2m")`. Any scheduler of diffusers may be
    put in: `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`. The network may be told classes, and
    texts through `text_encoder` and `tokenizer`.
    """

    def __init__(
        self,
        unet: UNet | MLPDenoiser | ConditionalUNet | UNet2DModel,
        scheduler: DDPMScheduler,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        null_condition: bool = False,
    ) -> None:
        super().__init__()
        self._register(unet, text_encoder, tokenizer, null_condition, scheduler=scheduler)

    def stock_twin(self) -> str | None:
        """Return "DDPMPipeline" for a U-Net told nothing and a stock scheduler, which that can run; else None."""
        net, config = getattr(self.unet, "_orig_mod", self.unet), self.unet.config
        labelled = config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None
        stock = all(saved_name(type(part).__name__)[0] == "diffusers" for part in (net, self.scheduler))
        return "DDPMPipeline" if stock and not labelled else None

    def __call__(
        self,
        batch_size: int = 1,
        num_steps: int | None = None,
        class_labels: Labels = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
        prompt: Prompt = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        guidance_interval: Interval = EVERYWHERE,
        guidance_rescale: float = 0.0,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        Of a network for the plane `.images` is (B, 2) in data coordinates, an array (a tensor for "pt").
        Lists, `latents` (x_T in the place of noise) and `image` decide the batch; else it is `batch_size`.
        `num_steps` is an int in [1, T] and defaults to all T steps of training, or to what is usual for the `sampler`;
        schedulers in continuous time take more than T as well. `generator`: one, or a list with one for each sample,
        whose noise then does not depend on the batch. `sampler`: a name of `hfgen.schedulers.samplers.SAMPLERS`; by
        default the pipeline's own scheduler. `eta` in [0, 1]: the noise of DDIM.

        `class_labels`: an int for all or one for each, `prompt`: a text for all or one for each; required of a network
        that was trained with them, unless it was trained without them too. It can then be guided: `guidance_scale` w is
        1 for none, for images by default 3; `guidance_interval`, in [0, 1] from the image to pure noise, is where it
        acts; `guidance_rescale` in [0, 1] is that of Lin et al. 2023. `negative_prompt` is what it leads away from.

        `image`: PIL images or a tensor in [0, 1] that sampling starts from, with noise of the last `strength` of the
        steps, in (0, 1], by default 0.8 (Meng et al. 2022). `mask`: what of it is painted anew, the rest stays: white,
        or 1; strength is then 1 by default. Errors: ConfigError, which is a ValueError.
        """
        check_output_type(output_type)
        states = self.states(
            batch_size, num_steps, class_labels, generator, sampler, eta, latents, prompt, guidance_scale,
            negative_prompt, image, strength, mask, guidance_interval, guidance_rescale,
        )  # fmt: skip
        for x in states:  # noqa: B007
            pass                                                                        # only the last is kept
        return self._output(decode(x, self.unet, output_type), return_dict)

    def states(
        self,
        batch_size: int = 1,
        num_steps: int | None = None,
        class_labels: Labels = None,
        generator: Generators = None,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
        prompt: Prompt = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        guidance_interval: Interval = EVERYWHERE,
        guidance_rescale: float = 0.0,
    ) -> Iterator[torch.Tensor]:
        """Return an iterator over x_T, ..., x_0 (Ho et al. 2020, algorithm 2), each (B, C, H, W) or (B, 2).

        Arguments are those of a call, and are checked at once; the values are in model coordinates.
        """
        return self._sampled(
            batch_size=batch_size, num_steps=num_steps, class_labels=class_labels, generator=generator,
            sampler=sampler, eta=eta, latents=latents, prompt=prompt, guidance_scale=guidance_scale,
            negative_prompt=negative_prompt, image=image, strength=strength, mask=mask,
            guidance_interval=guidance_interval, guidance_rescale=guidance_rescale,
        )  # fmt: skip
