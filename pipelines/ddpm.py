"""Sampling by denoising (Ho et al. 2020): images, and points in the plane."""

from diffusers import UNet2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.mlp import MLPDenoiser
from hfgen.models.unet import UNet
from hfgen.pipelines.base import saved_pair
from hfgen.pipelines.denoising import DenoisingPipeline
from hfgen.schedulers.ddpm import DDPMScheduler


class DDPMPipeline(DenoisingPipeline):
    """Images or points from noise: a network predicts the noise, a scheduler removes it step by step.

    `pipe(sampler="dpmpp_2m")` selects a sampler of `hfgen.schedulers.samplers` by name. Any scheduler of diffusers can
    replace the pipeline's own: `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`. The network can be
    conditioned on classes, and on texts through `text_encoder` and `tokenizer`.
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
        self._register_unet(unet, text_encoder, tokenizer, null_condition, scheduler=scheduler)

    def stock_twin(self) -> str | None:
        """Return "DDPMPipeline" for an unconditional U-Net of diffusers and a scheduler of diffusers, else None."""
        config = self.unet.config
        conditions = [config.get(field) for field in ("num_class_embeds", "class_embed_type", "cross_attention_dim")]
        if conditions != [None, None, None]:
            return None
        stock = all(saved_pair(part)[0] == "diffusers" for part in (self.unet, self.scheduler))
        return "DDPMPipeline" if stock else None
