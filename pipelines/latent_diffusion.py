"""Sampling by denoising in the latents of an autoencoder (Rombach et al. 2022), told a class or a text, or an image."""

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

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import as_output, check_output_type
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.text import token_ids
from hfgen.pipelines.base import Generators, Pipeline, check_generator, check_int, check_labels
from hfgen.pipelines.ddpm import checked_eta
from hfgen.pipelines.guidance import check_guidance, guided, scale_at
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.latent_inputs import common_batch, share_of
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.samplers import OWN, make_sampler

GUIDANCE = 3.0
"""Guidance scale where a model can be guided and none is given."""

Prompt = str | list[str] | None
Labels = int | list[int] | Tensor | None


@dataclass(frozen=True)
class Guide:
    """What the network is told, what it is told in its place for guidance, and how strong that is."""

    told: dict[str, Tensor | None]
    null: dict[str, Tensor | None]
    scale: float
    interval: tuple[float, float]
    rescale: float


@dataclass(frozen=True)
class Start:
    """Where sampling starts: noise eps, the latents x_0 of an image, if any, and what of them is painted anew, if not
    all: 1 there, (B or 1, 1, h, w)."""

    eps: Tensor
    x_0: Tensor | None = None
    mask: Tensor | None = None


class LatentDiffusionPipeline(Pipeline):
    """Images from noise in latents: a U-Net that predicts it, a scheduler that takes it away, a decoder for the end.

    The U-Net may know classes, and texts through `text_encoder` and `tokenizer`. Any scheduler of diffusers may be put
    in. States are latents; `decode(latents)` shows them.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  (as diffusers declares it)

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: ConditionalUNet,
        scheduler: DDPMScheduler,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ) -> None:
        super().__init__()
        told = unet.config["cross_attention_dim"] is not None
        if told != (text_encoder is not None) or told != (tokenizer is not None):
            raise ConfigError("text_encoder and tokenizer must be given exactly if the unet has a cross_attention_dim")
        if vae.config["latent_channels"] != unet.config["in_channels"]:
            raise ConfigError(f"unet takes {unet.config['in_channels']} channels, the latents of the vae have "
                              f"{vae.config['latent_channels']}")  # fmt: skip
        self.register_modules(
            vae=vae, unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )

    def __call__(
        self,
        prompt: Prompt = None,
        class_labels: Labels = None,
        num_steps: int | None = 50,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        batch_size: int = 1,
        latents: Tensor | None = None,
        generator: Generators = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        `prompt`: a text for all or one for each; None is the empty text. `class_labels`: an int for all or one for
        each; None is the null class, where that was trained. Lists, `latents` (B, D, h, w) and `image` decide the
        batch; else it is `batch_size`. `num_steps` is an int in [1, T], None for all T.

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
        num_steps: int | None = 50,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        batch_size: int = 1,
        latents: Tensor | None = None,
        generator: Generators = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        eta: float = 0.0,
    ) -> Iterator[Tensor]:
        """Return an iterator over the latents x_T, ..., x_0, each (B, D, h, w); `decode` makes images of them.

        Arguments are those of a call, and are checked at once.
        """
        scheduler = self.scheduler if sampler is None else make_sampler(sampler, self.scheduler)
        T = int(scheduler.config.num_train_timesteps)
        steps = T if num_steps is None else check_int("num_steps", num_steps, 1, T)
        choices = {"generator": generator, **checked_eta(eta, scheduler)}
        pixels = None if image is None else self._pixels(image)
        B = common_batch(batch_size, prompt=prompt, class_labels=class_labels, latents=latents, image=pixels)
        check_generator(generator, B)
        choice = (guidance_scale, guidance_interval, guidance_rescale)
        guide = self._guide(prompt, negative_prompt, class_labels, B, *choice)
        share = share_of(strength, image, mask)
        eps = self._noise(latents, B, generator)
        missing = None if mask is None else F.adaptive_max_pool2d(self._missing(mask, B).to(eps), eps.shape[2:])
        start = Start(eps, None if pixels is None else self._encoded(pixels, B).to(eps), missing)
        times = self._times(scheduler, steps, share)
        return self._denoise(start, times, guide, scheduler, choices)

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil", return_dict: bool = True) -> Any:
        """Return the images of latents (B, D, h, w), such as a state, `.images`."""
        check_output_type(output_type)
        images = as_output(self._images(latents), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def _denoise(
        self, start: Start, times: list[tuple[Any, Tensor]], guide: Guide, scheduler: Any, choices: dict[str, Any]
    ) -> Iterator[Tensor]:
        taken, T = inspect.signature(scheduler.step).parameters, scheduler.config.num_train_timesteps
        choices = {name: value for name, value in choices.items() if name in taken}
        dtype, eps = self.unet.dtype, start.eps
        x = eps * scheduler.init_noise_sigma
        if start.x_0 is not None:
            x = scheduler.add_noise(start.x_0, eps, times[0][1].expand(len(eps)))
        yield x
        for i, (t, on_device) in enumerate(self.progress_bar(times)):
            def predict(x_in: Tensor, now: Tensor = on_device, **told: Tensor | None) -> Tensor:
                return self.unet(x_in.to(dtype), now, return_dict=False, **told)[0].float()

            scale = scale_at(guide.scale, guide.interval, float(t), T)
            x_in = scheduler.scale_model_input(x, t)
            prediction = guided(predict, x_in, guide.told, guide.null, scale, guide.rescale).to(x.dtype)
            x = scheduler.step(prediction, t, x, return_dict=False, **choices)[0]
            if start.mask is not None and start.x_0 is not None:
                last = i == len(times) - 1
                known = start.x_0 if last else scheduler.add_noise(start.x_0, eps, times[i + 1][1].expand(len(eps)))
                x = torch.where(start.mask > 0, x, known)
            yield x

    def _times(self, scheduler: Any, steps: int, share: float) -> list[tuple[Any, Tensor]]:
        """Return the last `share` of the times to visit, each for the scheduler and for the network."""
        own, device = type(scheduler).__name__ in OWN, self._execution_device
        own = own and type(scheduler).__module__.startswith("hfgen.")
        scheduler.set_timesteps(steps, device="cpu" if own else device)
        times = scheduler.timesteps
        left_out = (steps - max(1, round(share * steps))) * getattr(scheduler, "order", 1)
        if left_out and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(left_out)
        pairs = list(zip(times.tolist() if own else times, times.to(device), strict=True))
        return pairs[left_out:]

    def _guide(
        self, prompt: Prompt, negative: Prompt, labels: Labels, B: int, scale: float | None, interval: Any, rescale: Any
    ) -> Guide:
        classes, null = self.unet.config["num_class_embeds"], bool(self.unet.config["null_class"])
        can = null or self.text_encoder is not None
        scale = (GUIDANCE if can else 1.0) if scale is None else scale
        check_guidance(scale, interval, rescale)
        if scale != 1 and not can:
            raise ConfigError(f"guidance_scale must be 1: this model was not trained without conditions, got {scale}")
        told: dict[str, Tensor | None] = {}
        instead: dict[str, Tensor | None] = {}
        nothing = None if not null else torch.full((B,), classes - 1, device=self._execution_device)
        if classes is not None and labels is None and null:
            told["class_labels"] = nothing
        else:
            found = check_labels(labels, classes if classes is None else classes - null, B)
            told["class_labels"] = None if found is None else found.to(self._execution_device)
        instead["class_labels"] = nothing if null else told["class_labels"]
        told["encoder_hidden_states"] = self._text("prompt", prompt, B)
        instead["encoder_hidden_states"] = self._text("negative_prompt", negative, B) if scale != 1 else None
        return Guide(told, instead, float(scale), tuple(interval), float(rescale))

    @torch.no_grad()
    def _text(self, name: str, texts: Prompt, B: int) -> Tensor | None:
        """Return the features of texts, (B, L, F), one text serving all; None for a model without texts."""
        if self.text_encoder is None:
            if texts is not None:
                raise ConfigError(f"{name} must be None, this model knows no texts; got {texts!r}")
            return None
        listed = [texts or ""] * B if texts is None or isinstance(texts, str) else texts
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise ConfigTypeError(f"{name} must be a text or a list of texts, got {texts!r}")
        if len(listed) != B:
            raise ConfigError(f"{name} must be one text or {B} of them, got {len(listed)}")
        ids = token_ids(self.tokenizer, listed, self._execution_device)
        features: Tensor = self.text_encoder(input_ids=ids).last_hidden_state.to(self.unet.dtype)
        return features

    def _noise(self, latents: Any, B: int, generator: Generators) -> Tensor:
        """Return x_T, given or drawn, (B, D, h, w), at least in float32 whatever the network's."""
        size, device = self.unet.config["sample_size"], self._execution_device
        if size is None:
            raise ConfigError("unet.config.sample_size is None; set it to the latents' side or (height, width)")
        shape = (B, self.unet.config["in_channels"], *((size, size) if isinstance(size, int) else size))
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ConfigError(f"latents must be a tensor of shape {list(shape)}, got {found}")
        return latents.to(device, dtype)

    def _sides(self) -> tuple[int, int]:
        size, factor = self.unet.config["sample_size"], self.vae.factor
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor

    def _pixels(self, image: Any) -> Tensor:
        """Return images as the autoencoder takes them, (B, C, H, W) in [-1, 1]."""
        return prepared(checked(image, "image"), self.vae.config["in_channels"], *self._sides(), self._execution_device)

    def _missing(self, mask: Any, B: int) -> Tensor:
        """Return which pixels are painted anew, bool (B, 1, H, W) or (1, 1, H, W)."""
        if isinstance(mask, Tensor):
            mask = mask.float() if mask.dtype == torch.bool else mask
            mask = mask[None, None] if mask.ndim == 2 else mask
        given = checked(mask, "mask")
        if len(given) not in (1, B):
            raise ConfigError(f"mask must be one for all images or one for each of {B}, got {len(given)}")
        return prepared(given, 1, *self._sides(), self._execution_device) > 0

    @torch.no_grad()
    def _encoded(self, pixels: Tensor, B: int) -> Tensor:
        z: Tensor = self.vae.to_latents(pixels.to(self.vae.dtype))
        return z.expand(B, -1, -1, -1)

    @torch.no_grad()
    def _images(self, latents: Tensor) -> Tensor:
        x: Tensor = self.vae.from_latents(latents.to(self.vae.device, self.vae.dtype)).float()
        return x
