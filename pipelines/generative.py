"""Base class of the pipelines that sample: each describes the samples it makes and the conditions it accepts."""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

from hfgen.errors import ConfigError
from hfgen.loading.keywords import unknown_keyword
from hfgen.pipelines.base import Pipeline


class GenerativePipeline(Pipeline):
    """Base of the pipelines that sample: `__call__` returns samples, `states(...)` yields x_T, ..., x_0.

    Its properties describe it without sampling: `sample_shape`, `points`, `num_classes`, `reads_text` and `guidable`.
    """

    model_cpu_offload_seq: str | None = None
    _interrupt = False
    _num_timesteps = 1

    def states(self, *args: Any, **settings: Any) -> Iterator[torch.Tensor]:
        """Return an iterator over x_T, ..., x_0 in model coordinates: images (B, C, H, W) in [-1, 1], points (B, dim).

        Raises NotImplementedError in this base class.
        """
        raise NotImplementedError

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: (C, H, W) for images, (dim,) for points."""
        raise NotImplementedError

    @property
    def points(self) -> bool:
        """Return whether samples are points in data coordinates; otherwise they are images."""
        return len(self.sample_shape) == 1

    @property
    def num_classes(self) -> int | None:
        """Return K for class labels in [0, K), the null class not counted; None for a model without classes."""
        return None

    @property
    def num_targets(self) -> int | None:
        """Return the number of classes that `target` may name; None for a pipeline without this argument."""
        return None

    @property
    def reads_text(self) -> bool:
        """Return whether the network is conditioned on texts, the argument `prompt`."""
        return False

    @property
    def guidable(self) -> bool:
        """Return whether the network was also trained without its conditions, as guidance requires."""
        return False

    @property
    def variable_steps(self) -> bool:
        """Return whether `num_steps` may have several values: for a pipeline with a scheduler."""
        return "scheduler" in self.components

    @property
    def num_timesteps(self) -> int:
        """Return the number of timesteps of the current or last call: evaluations, of which some methods take two."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Return whether a callback has stopped the current or last call."""
        return self._interrupt


def with_arguments_of(states: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a decorator for a method with `**settings`: its signature has the arguments of `states` in their place.

    The list of arguments is thus written once, in `states`, and `help` and `inspect.signature` show it for both. The
    decorated method raises ConfigTypeError, with the nearest name, for a keyword that it does not have.
    """

    def decorate(call: Any) -> Any:
        # the signature
        shared, own = inspect.signature(states).parameters, inspect.signature(call)
        more = [one for name, one in own.parameters.items() if name not in shared and one.kind is not one.VAR_KEYWORD]
        signature = own.replace(parameters=[*shared.values(), *more])

        # the method
        @wraps(call)
        def checked(self: Any, *arguments: Any, **settings: Any) -> Any:
            for key in settings:
                if key not in signature.parameters:
                    raise unknown_keyword(type(self).__name__, key, list(signature.parameters))
            return call(self, *arguments, **settings)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate


def merge_steps(num_steps: Any, num_inference_steps: Any) -> Any:
    """Return the number of steps under hfgen's or diffusers' name; None if neither is given.

    Raises ConfigError if both are given and differ.
    """
    if num_steps is None:
        return num_inference_steps
    if num_inference_steps is None:
        return num_steps
    if num_steps != num_inference_steps:
        raise ConfigError(f"num_steps is {num_steps!r} and num_inference_steps {num_inference_steps!r}; they are two "
                          "names of one argument, give one of them")  # fmt: skip
    return num_steps
