"""The callback after each step of sampling, with the meaning that it has in diffusers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hfgen.checks import require, require_number
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.pipelines.guidance import Guide

Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

LATENTS, TEXT = "latents", "prompt_embeds"
"""Tensors that a callback may read and replace: the state x_{t-1}, and text features, (2 B, L, F) under guidance."""


@dataclass(frozen=True)
class StepEnd:
    """A callback `function(pipeline, step, timestep, tensors)`, which returns the tensors that it replaces, or None.

    `names`: the tensors that it receives. The callback may also set attributes of the pipeline: `_interrupt = True`
    ends sampling with the present state, and `_guidance_scale` is the scale of the next steps; at 1 and below guidance
    is off.
    """

    function: Callback
    names: tuple[str, ...]

    @classmethod
    def of(cls, function: Any, names: Sequence[str] | None, allowed: Sequence[str]) -> "StepEnd | None":
        """Return the callback of the arguments of a call, checked; None if there is no function.

        `names`: Default: those of a `PipelineCallback` of diffusers, else the latents. Raises ConfigError for a name
        that is not in `allowed`.
        """
        if function is None:
            return None
        require(callable(function), "callback_on_step_end", function, "a function", ConfigTypeError)
        given = tuple(getattr(function, "tensor_inputs", names or [LATENTS]))
        known = all(name in allowed for name in given)
        require(known, "callback_on_step_end_tensor_inputs", list(given), f"names among {', '.join(allowed)}")
        return cls(function, given)

    def call(self, pipeline: Any, step: int, timestep: Tensor, x: Tensor, guide: Guide) -> tuple[Tensor, Guide]:
        """Return the state (B, ...) and the guidance after the callback.

        Raises ConfigError for tensors of other shapes, and for a scale above 1 if sampling started without guidance.
        """
        # call the function
        tensors = {LATENTS: x}
        if TEXT in self.names:
            tensors[TEXT] = text_of(guide)
        scale = pipeline._guidance_scale
        changed = self.changed(pipeline, step, timestep, tensors)
        # replace the text
        if changed.get(TEXT) is not tensors.get(TEXT):
            guide = with_text(guide, changed[TEXT], len(x))
        # change the scale
        if pipeline._guidance_scale != scale:
            guide = with_scale(guide, require_number("guidance_scale", pipeline._guidance_scale, 0, math.inf))
        return changed[LATENTS], guide

    def changed(self, pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` after the callback. Raises ConfigError for a state of another shape."""
        given = {name: tensors[name] for name in self.names}
        merged = tensors | (self.function(pipeline, step, timestep, given) or {})
        x, latents = tensors[LATENTS], merged[LATENTS]
        require(latents.shape == x.shape, LATENTS, tuple(latents.shape), f"of shape {tuple(x.shape)} in the callback")
        return merged | {LATENTS: latents.to(x)}


def text_of(guide: Guide) -> Tensor:
    """Return the text features, (B, L, F), or (2 B, L, F) under guidance, the unconditional ones first."""
    cond, uncond = guide.cond["encoder_hidden_states"], guide.uncond.get("encoder_hidden_states")
    assert cond is not None
    return cond if guide.scale == 1 or uncond is None else torch.cat([uncond, cond])


def with_text(guide: Guide, text: Tensor, B: int) -> Guide:
    """Return `guide` with the features `text` of B samples, (2 B, L, F); without guidance for (B or 1, L, F)."""
    require(len(text) in (1, B, 2 * B), TEXT, len(text), f"1, {B} or {2 * B} rows in the callback")
    if len(text) == 2 * B:
        uncond, cond = text.chunk(2)
        return replace(guide, cond=guide.cond | {"encoder_hidden_states": cond},
                       uncond=guide.uncond | {"encoder_hidden_states": uncond})  # fmt: skip
    return replace(guide, cond=guide.cond | {"encoder_hidden_states": text.expand(B, -1, -1)}, scale=1.0)


def with_scale(guide: Guide, scale: float) -> Guide:
    """Return `guide` with another scale, off at 1 and below. Raises ConfigError if the null conditions are missing."""
    missing = any(guide.uncond.get(name) is None for name in guide.cond)
    if scale > 1 and missing:
        raise ConfigError(f"guidance_scale must be above 1 from the first step if a callback raises it, got {scale}")
    return replace(guide, scale=max(1.0, scale))
