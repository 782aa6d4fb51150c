"""Checks of a DDPM scheduler's settings."""

import math
from collections.abc import Mapping
from typing import Any

from hfgen.checks import check_int, require_choice, require_number
from hfgen.logging import warn

FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")
CHOICES = {
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}
MAX_TIMESTEPS = 1_000_000
LARGEST = {
    "beta_start": math.inf,
    "beta_end": math.inf,
    "dynamic_thresholding_ratio": 1.0,
    "clip_sample_range": math.inf,
    "sample_max_value": math.inf,
}
"""Upper bounds of the numbers that are at least 0."""


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the name of the setting, for a choice or a number without meaning.

    An unknown `variance_type` only warns: diffusers accepts any and treats it as "fixed_small".
    """
    for name, choices in CHOICES.items():
        require_choice(name, config[name], choices)
    check_int("num_train_timesteps", config["num_train_timesteps"], 1, MAX_TIMESTEPS)
    check_int("steps_offset", config["steps_offset"], 0, MAX_TIMESTEPS)
    for name, largest in LARGEST.items():
        require_number(name, config[name], 0, largest)
    if config["variance_type"] not in FIXED + LEARNED:
        warn(
            f"variance_type {config['variance_type']!r} is unknown and means 'fixed_small', as in diffusers; "
            f"use one of {', '.join(FIXED + LEARNED)}"
        )
