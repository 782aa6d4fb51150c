"""Evaluated models: pipelines of hfgen or of diffusers, and any callable that returns images."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from hfgen import runs
from hfgen.cards.markdown import last_name
from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.evaluation.samples import GivenSamples, is_path_of_samples, load_samples
from hfgen.evaluation.settings import STOCK
from hfgen.loading.devices import best_device
from hfgen.loading.hashing import hash_of_weights
from hfgen.metrics.cost import networks_of
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.generative import GenerativePipeline
from hfgen.sampling.generate import open_model
from hfgen.schedulers.samplers import RECOMMENDED
from hfgen.schedulers.traits import traits_of

CLASSES = ("class_labels", "target")
STEPS = ("num_steps", "num_inference_steps")
"""Arguments of pipelines for classes and for the number of steps."""


class EvaluatedModel:
    """A model and the conditions that it needs to generate samples.

    Attributes: `pipeline`: the callable; `name`: its name in tables; `folder`: its folder, None for an object in
    memory; `loaded`: whether it was read from files, which hold everything that it depends on; `parameters`: those of
    its call; `num_classes`, `num_targets`: numbers of classes that `class_labels` and `target` may name, None without.
    """

    def __init__(
        self, pipeline: Any, name: str | None = None, folder: Path | None = None, loaded: bool = False
    ) -> None:
        # read the pipeline and its call
        self.pipeline, self.folder, self.loaded = pipeline, folder, loaded
        self.name = name or type(pipeline).__name__
        call = pipeline if inspect.isfunction(pipeline) else pipeline.__call__
        self.parameters: Mapping[str, inspect.Parameter] = inspect.signature(call).parameters
        # count the classes of a generative pipeline
        self.generative = pipeline if isinstance(pipeline, GenerativePipeline) else None
        self.num_classes: int | None = None
        self.num_targets: int | None = None
        if self.generative is not None:
            self.num_classes, self.num_targets = self.generative.num_classes, self.generative.num_targets

    @property
    def given(self) -> GivenSamples | None:
        """Return the samples that stand in the place of a model; None for a model."""
        return self.pipeline if isinstance(self.pipeline, GivenSamples) else None

    @property
    def own(self) -> bool:
        """Return whether the model is a pipeline of hfgen."""
        return isinstance(self.pipeline, Pipeline)

    @cached_property
    def fingerprint(self) -> str | None:
        """Return the sha256 of weights and settings; None for an object without components and without a text
        `fingerprint`, whose results are not cached."""
        return fingerprint_of(self.pipeline)

    @property
    def family(self) -> str:
        """Return the name of the pipeline's class."""
        if self.given is not None:
            return "given samples"
        return type(self.pipeline).__name__

    @property
    def run(self) -> Path | None:
        """Return the run folder that the model is, or is part of; None for other models."""
        return None if self.folder is None else runs.find(self.folder)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Return the shape of a sample, (C, H, W) or (2,); None if it is known only from a sample."""
        if self.given is not None:
            return self.given.shape
        return None if self.generative is None else self.generative.sample_shape

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Return the networks of the model by name; {} for an object without components."""
        return networks_of(self.pipeline) if hasattr(self.pipeline, "components") else {}

    @property
    def takes_generators(self) -> bool:
        """Return whether a call takes a list of generators, one for each sample."""
        parameter = self.parameters.get("generator")
        annotation = str(getattr(parameter, "annotation", "")).lower()
        return isinstance(self.pipeline, DiffusionPipeline) or "list" in annotation

    @property
    def steps(self) -> str | None:
        """Return the argument for the number of steps; None for a model of one step."""
        if self.own and (self.generative is None or not self.generative.variable_steps):
            return None
        return next((name for name in STEPS if name in self.parameters), None)

    @property
    def sampler(self) -> str | None:
        """Return the default sampler: the recommended one for a denoiser with the scheduler of its training, else None.

        A scheduler that was replaced, for example by DDIMScheduler of diffusers, stays.
        """
        if not self.own or "sampler" not in self.parameters:
            return None
        scheduler, traits = self.pipeline.scheduler, traits_of(self.pipeline.scheduler)
        trained = traits.predicts_variance or (traits.continuous and scheduler.config["method"] == "reverse_sde")
        return RECOMMENDED if trained else None

    @property
    def required(self) -> list[str]:
        """Return the arguments of a call that have no default."""
        some = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [name for name, one in self.parameters.items() if one.default is one.empty and one.kind not in some]

    @property
    def guidable(self) -> bool:
        """Return whether the model can be guided by its classes or captions."""
        if self.own:
            return self.generative is not None and self.generative.guidable
        return "guidance_scale" in self.parameters

    @property
    def reads_text(self) -> bool:
        """Return whether the model is conditioned on captions."""
        if self.own:
            return self.generative is not None and self.generative.reads_text
        return "prompt" in self.parameters

    @property
    def takes_classes(self) -> bool:
        """Return whether a model that is not of hfgen, whose number of classes is unknown, takes classes."""
        return not self.own and any(name in self.parameters for name in CLASSES)

    @property
    def device(self) -> str:
        """Return the kind of device that the model runs on."""
        return str(getattr(getattr(self.pipeline, "device", None), "type", "unknown"))

    def check_shape(self, shape: tuple[int, ...], data: Dataset) -> None:
        """Raise ConfigError for samples whose shape is not that of the data."""
        if shape == tuple(data.shape):
            return
        # describe both shapes, and the options that make them one
        given, expected = "x".join(map(str, shape)), "x".join(map(str, data.shape))
        hint = ""
        if len(shape) == len(data.shape) == 3:
            channels, height, width = shape
            side = str(height) if height == width else f"{height} {width}"
            hint = f"; load the data with --resolution {side} --channels {channels}"
        raise ConfigError(f"{self.name} makes {given}, {data.name} is {expected}{hint}")


def load_model(model: Any) -> EvaluatedModel:
    """Return the model of a name or path, on the GPU if there is one, or that of an object.

    `stock:MODEL` is a folder or Hub id of any pipeline of diffusers, which diffusers itself loads. A path of images or
    arrays, and an object that cannot be called, are samples.
    """
    if isinstance(model, EvaluatedModel):
        return model
    named = isinstance(model, str | Path)
    if (named and is_path_of_samples(model)) or not (named or callable(model)):
        samples = load_samples(model)
        return EvaluatedModel(samples, samples.name, loaded=True)
    if not named:
        return EvaluatedModel(model)
    if str(model).startswith(STOCK):
        return load_stock(str(model).removeprefix(STOCK))
    # open a model of hfgen, from the Hub or from a folder
    pipeline, path = open_model(model), Path(model).expanduser()
    if not path.is_dir():
        return EvaluatedModel(pipeline, str(model), loaded=True)
    # name it after its run folder, if it lies in one
    path = home = path.absolute()
    if path.name == "model" and runs.find(path):
        home = path.parent
    return EvaluatedModel(pipeline, last_name(str(home)), path, loaded=True)


def load_stock(model: str) -> EvaluatedModel:
    """Return a pipeline that diffusers loads from a folder or a Hub id: safetensors, no code of the model.

    Raises ConfigError with the words of diffusers if it cannot be loaded.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{STOCK}{model}: diffusers cannot load it ({words[0]})") from error
    pipeline = pipeline.to(best_device())
    return EvaluatedModel(pipeline, last_name(model), loaded=True)


def fingerprint_of(pipeline: Any) -> str | None:
    """Return a sha256 over the class, the weights and the settings of a pipeline, or its own text `fingerprint`.

    None for an object without components, and for one with a component of unknown content.
    """
    # take its own fingerprint
    own = getattr(pipeline, "fingerprint", None)
    if isinstance(own, str):
        return own
    # hash class, settings and weights of every component
    components = getattr(pipeline, "components", None)
    if not isinstance(components, Mapping):
        return None
    parts: list[Any] = [type(pipeline).__name__, _settings(pipeline)]
    for name, part in sorted(components.items()):
        if part is None:
            continue
        parts += [name, type(part).__name__, _settings(part)]
        if isinstance(part, nn.Module):
            parts.append(hash_of_weights(part))
        elif hasattr(part, "get_vocab"):
            parts.append(sorted(part.get_vocab().items()))
        elif not parts[-1]:
            return None
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def attributes_of(pipeline: Any) -> str | None:
    """Return a sha256 over the attributes that an object of a user's class has beside its components.

    A constant for classes of hfgen and of diffusers, whose weights and settings determine everything. None for an
    attribute that cannot be compared, such as a function.
    """
    if type(pipeline).__module__.partition(".")[0] in ("hfgen", "diffusers"):
        return hashlib.sha256().hexdigest()
    last_call = {"_guidance_scale", "_interrupt", "_num_timesteps"}
    known = {"_internal_dict", "_progress_bar_config", *last_call, *pipeline.components}
    try:
        own = {name: _comparable(value) for name, value in sorted(vars(pipeline).items()) if name not in known}
    except TypeError:
        return None
    return hashlib.sha256(json.dumps([type(pipeline).__qualname__, own]).encode()).hexdigest()


def _comparable(value: Any) -> Any:
    """Return plain JSON that is equal for equal values. Raises TypeError for values without such a form."""
    # hash networks and arrays
    if isinstance(value, nn.Module):
        return hash_of_weights(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    # convert containers, keep plain values
    if isinstance(value, Mapping):
        return [[_comparable(key), _comparable(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(type(value).__name__)


def _settings(part: Any) -> dict[str, Any]:
    """Return the settings of a pipeline or component, without private entries and versions."""
    config: Any = getattr(part, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return {}
    return {key: config[key] for key in sorted(config) if not key.startswith("_") and "version" not in key}


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Hide the progress bars of a pipeline inside."""
    # hide the bars
    before = getattr(pipeline, "_progress_bar_config", {})
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    # restore them
    finally:
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(**before)
