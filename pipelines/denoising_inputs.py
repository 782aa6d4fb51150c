"""What is asked of pipelines that denoise, checked: how many samples, and how much of the way an image goes."""

from typing import Any

from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.pipelines.base import check_int


def common_batch(batch_size: int, **given: Any) -> int:
    """Return how many samples are made: as many as lists and tensors have rows, or `batch_size`.

    One row serves all, but of `latents`. ConfigError, naming them, where they say different numbers.
    """
    check_int("batch_size", batch_size, 1)
    listed = {n: len(v) for n, v in given.items() if isinstance(v, list) or (isinstance(v, Tensor) and v.ndim)}
    counts = {name: count for name, count in listed.items() if count != 1 or name == "latents"}
    counts |= {"batch_size": batch_size} if batch_size != 1 else {}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ConfigError(f"these must agree: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    return next(iter(counts.values()), 1)


def share_of(strength: Any, image: Any, mask: Any) -> float:
    """Return the share of the steps that an image goes through, all of them without one.

    By default 0.8, and 1 where a mask says what of it is painted anew. Raises ConfigError, naming the argument.
    """
    if image is None:
        if mask is not None or strength is not None:
            raise ConfigError("mask and strength go with an image, which is missing")
        return 1.0
    value = (0.8 if mask is None else 1.0) if strength is None else strength
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"strength must be a number in (0, 1], got {strength!r}")
    return float(value)
