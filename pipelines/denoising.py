"""What pipelines that denoise share: what their network is told, where they start, and the steps from noise to data."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.models.text import token_ids
from hfgen.pipelines.base import Generators, Pipeline, check_generator, check_int, check_labels
from hfgen.pipelines.denoising_inputs import common_batch, share_of
from hfgen.pipelines.guidance import check_guidance, guided, scale_at
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.outputs import in_plane
from hfgen.schedulers.samplers import OWN, SAMPLERS, make_sampler

GUIDANCE = 3.0
"""Guidance scale of images where a model can be guided and none is given."""

Prompt = str | list[str] | None
Labels = int | list[int] | Tensor | None
Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Guide:
    """What the network is told, what it is told in its place for guidance, and how strong that is."""

    told: dict[str, Tensor | None]
    null: dict[str, Tensor | None]
    scale: float
    interval: Interval
    rescale: float


@dataclass(frozen=True)
class Start:
    """Where sampling starts: noise eps; the state x_0 of an image, if any; what of that is made anew, if not all: 1
    there, (B or 1, 1, h, w)."""

    eps: Tensor
    x_0: Tensor | None = None
    mask: Tensor | None = None


class DenoisingPipeline(Pipeline):
    """Base of the pipelines that denoise, with any scheduler, told classes or texts, and from noise or from an image.

    `null_condition` says whether the network was trained without its conditions too, as guidance needs it to be: with
    the empty text, and with the null class, the last of the unet's `num_class_embeds`.
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  (as diffusers declares it)

    def _register(
        self, unet: Any, text_encoder: CLIPTextModel | None, tokenizer: CLIPTokenizer | None, null_condition: bool,
        **parts: Any,
    ) -> None:  # fmt: skip
        """Take the components over; ConfigError for those that do not fit together."""
        text = unet.config.get("cross_attention_dim") is not None
        if text != (text_encoder is not None) or text != (tokenizer is not None):
            raise ConfigError("text_encoder and tokenizer must be given exactly if the unet has a cross_attention_dim")
        classes = unet.config.get("num_class_embeds")
        if null_condition and (classes == 1 or not (classes or text)):
            raise ConfigError("null_condition needs a unet that is told texts, or classes and behind them the null "
                              f"class; this one has {classes or 'none'}")  # fmt: skip
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, **parts)
        self.register_to_config(null_condition=null_condition)

    def _sampled(
        self, *, batch_size: int, num_steps: int | None, class_labels: Any, generator: Generators, sampler: str | None,
        eta: float, latents: Any, prompt: Prompt, guidance_scale: float | None, negative_prompt: Prompt, image: Any,
        strength: float | None, mask: Any, guidance_interval: Interval, guidance_rescale: float,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Return an iterator over the states x_T, ..., x_0; every argument is checked at once."""
        scheduler = self.scheduler if sampler is None else make_sampler(sampler, self.scheduler)
        steps = self._steps(scheduler, num_steps, sampler)
        choices = {"generator": generator, **checked_eta(eta, scheduler)}
        pixels = None if image is None else self._pixels(image)
        B = common_batch(batch_size, prompt=prompt, class_labels=class_labels, latents=latents, image=pixels)
        check_generator(generator, B)
        choice = (guidance_scale, guidance_interval, guidance_rescale)
        guide = self._guide(prompt, negative_prompt, class_labels, B, *choice)
        share = share_of(strength, image, mask)
        eps = self._noise(latents, B, generator)
        missing = None if mask is None else F.adaptive_max_pool2d(self._missing(mask, B).to(eps), eps.shape[2:])
        start = Start(eps, None if pixels is None else self._encoded(pixels).to(eps).expand_as(eps), missing)
        return self._denoise(start, self._times(scheduler, steps, share), guide, scheduler, choices)

    @torch.no_grad()
    def _denoise(
        self, start: Start, times: list[tuple[Any, Tensor]], guide: Guide, scheduler: Any, choices: dict[str, Any]
    ) -> Iterator[Tensor]:
        taken, T = inspect.signature(scheduler.step).parameters, scheduler.config.num_train_timesteps
        choices = {name: value for name, value in choices.items() if name in taken}
        wants_variance = type(scheduler).__name__.startswith("DDPM")
        dtype, eps = self.unet.dtype, start.eps
        x = eps * scheduler.init_noise_sigma
        if start.x_0 is not None:
            x = scheduler.add_noise(start.x_0, eps, times[0][1].expand(len(eps)))
        yield x
        for i, (t, on_device) in enumerate(self.progress_bar(times)):
            def predict(x_in: Tensor, now: Tensor = on_device, **told: Tensor | None) -> Tensor:
                return self.unet(x_in.to(dtype), now, return_dict=False, **told)[0].to(eps.dtype)

            scale = scale_at(guide.scale, guide.interval, float(t), T)
            x_in = scheduler.scale_model_input(x, t)
            prediction = guided(predict, x_in, guide.told, guide.null, scale, guide.rescale)
            if not wants_variance:
                prediction = prediction[:, : x.shape[1]]                   # without the half that is the variance
            x = scheduler.step(prediction, t, x, return_dict=False, **choices)[0]
            if start.mask is not None and start.x_0 is not None:
                last = i == len(times) - 1
                known = start.x_0 if last else scheduler.add_noise(start.x_0, eps, times[i + 1][1].expand(len(eps)))
                x = torch.where(start.mask > 0, x, known)
            yield x

    def _steps(self, scheduler: Any, num_steps: int | None, sampler: str | None) -> int:
        T = int(scheduler.config.num_train_timesteps)
        high = None if type(scheduler).__name__ == "VPSDEScheduler" else T
        if num_steps is None:
            return T if sampler is None else min(T, SAMPLERS[sampler].steps)
        return check_int("num_steps", num_steps, 1, high)

    def _times(self, scheduler: Any, steps: int, share: float) -> list[tuple[Any, Tensor]]:
        """Return the last `share` of the times to visit, each for the scheduler and for the network.

        No step then waits for a device: hfgen's schedulers count in Python numbers, others in tensors; the network gets
        tensors on its device, always.
        """
        own, device = type(scheduler).__name__ in OWN, self._execution_device
        own = own and type(scheduler).__module__.startswith("hfgen.")
        scheduler.set_timesteps(steps, device="cpu" if own else device)
        times = scheduler.timesteps
        multistep = type(scheduler).__name__.endswith("MultistepScheduler")
        if multistep and len(times.unique()) < len(times):                 # two equal noise levels: no step between
            raise ConfigError(f"num_steps must be smaller with {type(scheduler).__name__}, got {steps}: it rounds two "
                              "steps to the same timestep")  # fmt: skip
        left_out = (steps - max(1, round(share * steps))) * getattr(scheduler, "order", 1)
        if left_out and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(left_out)
        return list(zip(times.tolist() if own else times, times.to(device), strict=True))[left_out:]

    def _guide(
        self, prompt: Prompt, negative: Prompt, labels: Any, B: int, scale: float | None, interval: Any, rescale: Any
    ) -> Guide:
        null = self.config["null_condition"]
        scale = (GUIDANCE if null and not in_plane(self.unet) else 1.0) if scale is None else scale
        check_guidance(scale, interval, rescale)
        if scale != 1 and not null:
            raise ConfigError(f"guidance_scale must be 1: this model was not trained without conditions, got {scale}")
        if prompt is None and self.text_encoder is not None and not null:
            raise ConfigError("prompt must be given: this model was not trained without texts")
        if negative is not None and scale == 1 and self.text_encoder is not None:
            hint = "" if null else ", which this model, never trained without conditions, cannot have"
            raise ConfigError(f"negative_prompt: needs a guidance_scale other than 1{hint}; got {negative!r}")
        if prompt is None and negative is None and labels is None:
            scale = 1.0                                    # nothing to lead to or away from: u + w (u - u) = u, at once
        told: dict[str, Tensor | None] = {}
        instead: dict[str, Tensor | None] = {}
        if (classes := self._labels(labels, B)) is not None:
            told["class_labels"] = classes
            instead["class_labels"] = self._labels(None, B) if null else None
        if (text := self._text("prompt", prompt, B)) is not None:
            told["encoder_hidden_states"] = text
        if scale != 1 or negative is not None:
            instead["encoder_hidden_states"] = self._text("negative_prompt", negative, B)
        return Guide(told, instead, float(scale), tuple(interval), float(rescale))

    def _labels(self, labels: Any, B: int) -> Tensor | None:
        """Return labels (B,) on the network's device, the null class for None where that was trained, None without
        classes."""
        config, null = self.unet.config, self.config["null_condition"]
        classes = config["num_class_embeds"]
        if config.get("class_embed_type") is not None:                 # times or embeddings, for the network to check
            found = None if labels is None else torch.as_tensor(labels)
        elif labels is None and null and classes is not None:
            found = torch.full((B,), classes - 1)
        else:
            found = check_labels(labels, None if classes is None else classes - null, B)
        return None if found is None else found.to(self._execution_device)

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
        if len(listed) not in (1, B):
            raise ConfigError(f"{name} must be one text or {B} of them, got {len(listed)}")
        ids = token_ids(self.tokenizer, listed, self._execution_device)
        features: Tensor = self.text_encoder(input_ids=ids).last_hidden_state.to(self.unet.dtype)
        return features.expand(B, -1, -1)

    def _noise(self, latents: Any, B: int, generator: Generators) -> Tensor:
        """Return x_T, given or drawn, shaped like B states, at least in float32 whatever the network's."""
        shape, device = (B, *self._shape()), self._execution_device
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ConfigError(f"latents must be a tensor of shape {list(shape)}, got {found}")
        return latents.to(device, dtype)

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of one state: (C, H, W) or (2,)."""
        size, channels = self.unet.config["sample_size"], self.unet.config["in_channels"]
        if in_plane(self.unet):
            return (channels,)
        if size is None:
            raise ConfigError("unet.config.sample_size is None; set it to the side or (height, width) of what it sees")
        return (channels, size, size) if isinstance(size, int) else (channels, *size)

    def _image_shape(self) -> tuple[int, ...]:
        """Return the shape of one image, (C, H, W); of points (2,)."""
        return self._shape()

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Return the states x_0 of images (B, C, H, W) in [-1, 1]."""
        return pixels

    def _pixels(self, image: Any) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1], in the size and with the channels of those that are made."""
        if in_plane(self.unet):
            raise ConfigError("image must be None, this model makes points")
        channels, height, width = self._image_shape()
        return prepared(checked(image, "image"), channels, height, width, self._execution_device)

    def _missing(self, mask: Any, B: int) -> Tensor:
        """Return which pixels are made anew, bool (B, 1, H, W) or (1, 1, H, W)."""
        if isinstance(mask, Tensor):
            mask = mask.float() if mask.dtype == torch.bool else mask
            mask = mask[None, None] if mask.ndim == 2 else mask
        given = checked(mask, "mask")
        if len(given) not in (1, B):
            raise ConfigError(f"mask must be one for all images or one for each of {B}, got {len(given)}")
        _, height, width = self._image_shape()
        return prepared(given, 1, height, width, self._execution_device) > 0


def checked_eta(eta: Any, scheduler: Any) -> dict[str, float]:
    """Return {"eta": eta} where the scheduler's steps take it; ConfigError if it is outside [0, 1], or of no use."""
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise ConfigError(f"eta must be a number in [0, 1], got {eta!r}")
    if "eta" in inspect.signature(scheduler.step).parameters and scheduler.config.get("method", "ddim") == "ddim":
        return {"eta": float(eta)}
    if eta:
        raise ConfigError(f"eta is the noise of DDIM: {type(scheduler).__name__} has none; use sampler 'ddim'")
    return {}
