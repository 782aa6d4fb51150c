"""The decorator of diffusers that records the arguments of `__init__`, typed, so that static tools see a class."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from diffusers import configuration_utils

Init = TypeVar("Init", bound=Callable[..., Any])


def register_to_config(init: Init) -> Init:
    """Return an `__init__` that also records its arguments in `self.config`."""
    return cast(Init, configuration_utils.register_to_config(init))
