"""Start a run from the weights of a saved model in place of random ones: fine-tuning, and training in stages."""

from collections.abc import Callable
from typing import Any, cast

from diffusers import DiffusionPipeline
from torch import nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.loading.given import object_of
from hfgen.pipelines.auto import AutoPipeline
from hfgen.training.engine.loop import Build
from hfgen.training.engine.phase import Recipe

BuildOn = Callable[[Any, Any, dict[str, Any]], Recipe | None]
"""Completed settings, dataset and components of a saved pipeline -> a recipe built on them, None for other ones."""


def with_weights_of(model: str, build: Build, build_on: BuildOn | None = None) -> Build:
    """Return `build`, whose recipe then has the weights of `model`, a run, a pipeline folder or a Hub id.

    Networks that are components of the saved pipeline, by name, start from them; others, such as discriminators, from
    random weights. `build_on` comes first, for networks that are built on those of another family. Raises ConfigError
    where there is none in common, or where one is built otherwise.
    """
    # take the given pipeline, or load the saved one
    given: Any = object_of(model) or AutoPipeline.from_pretrained(model)
    if not isinstance(given, DiffusionPipeline):
        raise ConfigError(f"start_from must be a name or a pipeline, got {given!r:.80}")
    components = cast(Any, given).components

    # build the networks, then copy the weights of those in common
    def with_weights(settings: Any, dataset: Dataset) -> Recipe:
        built = None if build_on is None else build_on(settings, dataset, components)
        if built is not None:
            return built
        recipe = build(settings, dataset)
        common = [name for name in recipe.nets if isinstance(components.get(name), nn.Module)]
        if not common:
            raise ConfigError(f"--start-from {model}: has {', '.join(components)}, needed {', '.join(recipe.nets)}")
        for name in common:
            copy_weights(components[name], recipe.nets[name], f"--start-from {model}: {name}")
        return recipe

    return with_weights


def copy_weights(source: nn.Module, target: nn.Module, where: str) -> None:
    """Copy all parameters and buffers. Raises ConfigError naming the first that is missing or has another shape."""
    # compare names and shapes
    there, here = source.state_dict(), target.state_dict()
    for key in sorted(there.keys() | here.keys()):
        given, needed = (tuple(s[key].shape) if key in s else "none" for s in (there, here))
        if given != needed:
            raise ConfigError(f"{where} is another network than these settings build: {key} is {given}, not {needed}")
    # copy
    target.load_state_dict(there)
