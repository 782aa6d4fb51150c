"""Latents that callers give to pipelines of one step: checked, with errors that say what was found."""

from typing import Any

import torch

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.pipelines.base import check_int


def checked_latents(latents: Any, D: int) -> torch.Tensor:
    """Return `latents` as they are; ConfigError unless they are floats (B, D), B > 0."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ConfigTypeError(f"latents must be a tensor of floats (B, {D}), got {kind}")
    if latents.ndim != 2 or latents.shape[1] != D or not len(latents):
        raise ConfigError(f"latents must have shape (B, {D}), got {list(latents.shape)}")
    return latents


def one_latent(name: str, given: Any, D: int) -> torch.Tensor:
    """Return one latent (D,), given as (D,) or (1, D). Errors call it `name`."""
    fits = isinstance(given, torch.Tensor) and given.is_floating_point() and given.shape in ((D,), (1, D))
    if not fits:
        found = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise ConfigError(f"{name} must be a tensor of floats ({D},) or (1, {D}), got {found}")
    return given.reshape(D)


def batch_of(latents: Any, batch_size: int, D: int) -> int:
    """Return how many `latents` (B, D) were given; ConfigError where `batch_size` is another number, and not 1."""
    found = len(checked_latents(latents, D))
    if batch_size not in (1, found):
        raise ConfigError(f"batch_size must be {found}, the number of latents given, or left out; got {batch_size}")
    return found


def one_step(num_steps: Any) -> None:
    """Raise ConfigError unless `num_steps` is 1, or None."""
    if num_steps is not None:
        check_int("num_steps", num_steps, 1, 1)
