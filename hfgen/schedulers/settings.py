"""Checks of a DDPM scheduler's settings."""

import math
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from hfgen.errors import ConfigError, ConfigTypeError

FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")
CHOICES = {
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}
BOUNDS: dict[str, tuple[type, float, float]] = {  # kind, least, most
    "num_train_timesteps": (Integral, 1, 1_000_000),
    "beta_start": (Real, 0, math.inf),
    "beta_end": (Real, 0, math.inf),
    "dynamic_thresholding_ratio": (Real, 0, 1),
    "clip_sample_range": (Real, 0, math.inf),
    "sample_max_value": (Real, 0, math.inf),
    "steps_offset": (Integral, 0, 1_000_000),
}


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the name of the setting, for a choice or number that has no meaning.

    An unknown `variance_type` only warns: diffusers takes any and treats it as "fixed_small".
    """
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {config[name]!r}")
    for name, bounds in BOUNDS.items():
        check_number(name, config[name], *bounds)
    if config["variance_type"] not in FIXED + LEARNED:
        warnings.warn(
            f"variance_type {config['variance_type']!r} is unknown and means 'fixed_small', as in diffusers; "
            f"use one of {', '.join(FIXED + LEARNED)}",
            stacklevel=5,
        )


def check_number(name: str, value: Any, kind: type, least: float, most: float) -> None:
    """Raise ConfigError unless `value` is an int (`Integral`) or a number (`Real`) in [least, most], no NaN or bool."""
    allowed = f"{name} must be {'an int' if kind is Integral else 'a number'} in [{least}, {most}], got {value!r}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ConfigTypeError(allowed)
    if not least <= value <= most:  # type: ignore[operator]
        raise ConfigError(allowed)
