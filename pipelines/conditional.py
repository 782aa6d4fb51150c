"""Base class of the pipelines whose network is conditioned on classes or texts, and guided by them."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError
from hfgen.pipelines.base import check_labels
from hfgen.pipelines.guidance import Guide, check_guidance
from hfgen.pipelines.step_end import LATENTS, TEXT
from hfgen.pipelines.text_conditional import Prompt, TextConditionalPipeline

GUIDANCE = 3.0
"""Default guidance scale of images for a model that can be guided."""

Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, 1.0)


class ConditionalPipeline(TextConditionalPipeline):
    """Base of the pipelines that generate with one network, conditioned on classes, on texts, or on nothing.

    `null_condition`: whether the network was also trained without its conditions, as guidance requires: with the empty
    text, and with the null class, the last of the network's `num_class_embeds`.
    """

    model_cpu_offload_seq: str | None = None
    _guidance_scale = 1.0
    default_guidance = GUIDANCE
    """Guidance scale of images if the caller gives none and the model can be guided."""

    def _register(
        self, part: str, net: Any, text: bool, text_encoder: CLIPTextModel | None, tokenizer: CLIPTokenizer | None,
        null_condition: bool, **parts: Any,
    ) -> None:  # fmt: skip
        """Register the components, the network under the name `part`; ConfigError if they do not fit together.

        `text`: whether the network is conditioned on texts.
        """
        # check the conditions
        self._check_text_parts(part, text, text_encoder, tokenizer)
        classes = net.config.get("num_class_embeds")
        if null_condition and (classes == 1 or not (classes or text)):
            raise ConfigError(f"null_condition needs a {part} that is conditioned on texts, or on classes followed by "
                              f"the null class; this one has {classes or 'none'}")  # fmt: skip
        # keep the components
        self.register_modules(**{part: net}, text_encoder=text_encoder, tokenizer=tokenizer, **parts)
        self.register_to_config(null_condition=null_condition)

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes without the null class; None without classes."""
        classes = self.conditioned.config.get("num_class_embeds")
        return None if not classes else int(classes) - bool(self.config["null_condition"])

    @property
    def guidable(self) -> bool:
        """Return whether the network was also trained without its conditions."""
        return bool(self.config["null_condition"])

    @property
    def guidance_scale(self) -> float:
        """Return the guidance scale of the current or last call; a callback changes it as `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Return whether the current or last call is guided."""
        return self._guidance_scale > 1

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return [LATENTS, TEXT] if self.reads_text else [LATENTS]

    def _guide(
        self, prompt: Prompt, negative: Prompt, labels: Any, B: int, scale: float | None, interval: Any, rescale: Any
    ) -> Guide:
        """Return conditions and guidance for B samples, checked."""
        # scale
        null = self.config["null_condition"]
        if scale is None:
            scale = self.default_guidance if null and not self.points else 1.0
        check_guidance(scale, interval, rescale)
        if scale != 1 and not null:
            raise ConfigError(f"guidance_scale must be 1: this model was not trained without conditions, got {scale}")
        self._check_prompt(prompt)
        if negative is not None and scale == 1 and self.text_encoder is not None:
            hint = "" if null else ", which this model, never trained without conditions, cannot have"
            raise ConfigError(f"negative_prompt: needs a guidance_scale other than 1{hint}; got {negative!r}")
        if prompt is None and negative is None and labels is None:
            scale = 1.0                                                # c = u, so u + w (c - u) = u in one evaluation
        # conditions, and their replacements in the unconditional prediction
        cond: dict[str, Tensor | None] = {}
        uncond: dict[str, Tensor | None] = {}
        if (classes := self._labels(labels, B)) is not None:
            cond["class_labels"] = classes
            uncond["class_labels"] = self._labels(None, B) if null else None
        if (text := self._text("prompt", prompt, B)) is not None:
            cond["encoder_hidden_states"] = text
        if scale != 1 or negative is not None:
            uncond["encoder_hidden_states"] = self._text("negative_prompt", negative, B)
        return Guide(cond, uncond, float(scale), tuple(interval), float(rescale))

    def _labels(self, labels: Any, B: int) -> Tensor | None:
        """Return labels (B,) int64 on the network's device; None for a network without classes.

        The labels None are the null class if the network was trained with it. Labels of a network with a
        `class_embed_type` are timesteps or embeddings; the network checks them.
        """
        config = self.conditioned.config
        classes = config["num_class_embeds"]
        if config.get("class_embed_type") is None:
            if labels is None and classes is not None and self.config["null_condition"]:
                labels = torch.full((B,), classes - 1)
            else:
                labels = check_labels(labels, self.num_classes, B)
        if labels is None:
            return None
        return torch.as_tensor(labels).to(self._execution_device)
