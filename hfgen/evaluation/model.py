"""Who is judged: a pipeline of hfgen or of diffusers, or anything that is called and gives images."""

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
from hfgen.errors import ConfigError
from hfgen.hashing import hash_of_weights
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.controllable_gan import ControllableGANPipeline
from hfgen.pipelines.denoising import DenoisingPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.outputs import in_plane
from hfgen.pipelines.vae import VAEPipeline
from hfgen.sample_dataset import num_classes
from hfgen.sampling import open_model

CLASSES = ("class_labels", "target")
STOCK = "stock:"
"""The prefix of a model that diffusers loads, whatever pipeline it is."""
STEPS = ("num_steps", "num_inference_steps")
"""Arguments by which pipelines are told classes, and steps."""

RECOMMENDED = "dpmpp_2m"
"""Sampler of a judged diffusion model whose scheduler is the one of training, which needs hundreds of steps."""


class Subject:
    """A model and what it must be told to make samples.

    Attributes: `pipeline`, what is called; `name` for people; `folder`, where it lies, None of an object; `loaded`,
    whether it was read from files, which hold all that it depends on; `parameters` of its call; `num_classes` that it
    must be told one of, None where it takes none.
    """

    def __init__(
        self, pipeline: Any, name: str | None = None, folder: Path | None = None, loaded: bool = False
    ) -> None:
        if not callable(pipeline):
            raise ConfigError(f"{type(pipeline).__name__} is no model: give a folder, a Hub id, or what gives images "
                              "when called")  # fmt: skip
        self.pipeline, self.folder, self.loaded = pipeline, folder, loaded
        self.name = name or type(pipeline).__name__
        call = pipeline if inspect.isfunction(pipeline) else pipeline.__call__
        self.parameters: Mapping[str, inspect.Parameter] = inspect.signature(call).parameters
        self.num_classes = num_classes(pipeline) if isinstance(pipeline, Pipeline) else None
        self.num_targets = pipeline._num_labels if isinstance(pipeline, ControllableGANPipeline) else None

    @cached_property
    def fingerprint(self) -> str | None:
        """Return a sha256 of weights and settings, None of an object without components, whose results are not cached
        unless it has a text `fingerprint`."""
        return fingerprint_of(self.pipeline)

    @property
    def family(self) -> str:
        """Return the name of the pipeline's class."""
        return type(self.pipeline).__name__

    @property
    def run(self) -> Path | None:
        """Return the run folder that the model is, or is part of; None for other models."""
        return None if self.folder is None else runs.find(self.folder)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Return the shape of a sample, (C, H, W) or (2,); None where only a sample tells."""
        pipeline: Any = self.pipeline
        if isinstance(pipeline, DenoisingPipeline):
            return pipeline._image_shape()
        if isinstance(pipeline, VAEPipeline):
            return tuple(pipeline.vae.shape)
        if not isinstance(pipeline, GANPipeline):
            return None
        config = pipeline.generator.config
        if in_plane(pipeline.generator):
            return (config["dim"],)
        side = config["resolution"]
        return (config["channels"], *((side, side) if isinstance(side, int) else side))

    @property
    def listed(self) -> bool:
        """Return whether a call takes a list of generators, one for each sample."""
        parameter = self.parameters.get("generator")
        annotation = str(getattr(parameter, "annotation", "")).lower()
        return isinstance(self.pipeline, DiffusionPipeline) or "list" in annotation

    @property
    def steps(self) -> str | None:
        """Return the argument that takes a number of steps; None of a model of one step."""
        if isinstance(self.pipeline, Pipeline) and not ("scheduler" in self.pipeline.components or self.num_targets):
            return None
        return next((name for name in STEPS if name in self.parameters), None)

    @property
    def sampler(self) -> str | None:
        """Return the default sampler: the recommended one of a denoiser with the scheduler of training, else None.

        A scheduler that somebody put in, such as diffusers' DDIMScheduler, stays.
        """
        if not isinstance(self.pipeline, DenoisingPipeline) or "sampler" not in self.parameters:
            return None
        scheduler: Any = self.pipeline.scheduler
        method = {"DDPMScheduler": "ddpm", "VPSDEScheduler": scheduler.config.get("method")}
        return RECOMMENDED if method.get(type(scheduler).__name__) in ("ddpm", "reverse_sde") else None

    @property
    def needed(self) -> list[str]:
        """Return the arguments that a call must be given."""
        some = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [name for name, one in self.parameters.items() if one.default is one.empty and one.kind not in some]

    @property
    def guided(self) -> bool:
        """Return whether the model can be guided by its classes or captions."""
        if isinstance(self.pipeline, Pipeline):
            return bool(self.pipeline.config.get("null_condition"))
        return "guidance_scale" in self.parameters

    @property
    def reads_text(self) -> bool:
        """Return whether the model is told captions."""
        if isinstance(self.pipeline, Pipeline):
            return self.pipeline.components.get("text_encoder") is not None
        return "prompt" in self.parameters

    @property
    def device(self) -> str:
        """Return the kind of device that the model runs on."""
        return str(getattr(getattr(self.pipeline, "device", None), "type", "unknown"))


def open_subject(model: Any) -> Subject:
    """Return what is judged: of a text or path the model there, on the GPU if there is one; of an object itself.

    `stock:MODEL` is a folder or Hub id of any pipeline of diffusers, which reads it itself.
    """
    if not isinstance(model, str | Path):
        return model if isinstance(model, Subject) else Subject(model)
    if str(model).startswith(STOCK):
        return open_stock(str(model).removeprefix(STOCK))
    pipeline, path = open_model(model), Path(model).expanduser()
    if not path.is_dir():
        return Subject(pipeline, str(model), loaded=True)
    path = path.absolute()
    home = path.parent if path.name == "model" and runs.find(path) else path
    return Subject(pipeline, last_name(str(home)), path, loaded=True)


def open_stock(model: str) -> Subject:
    """Return a pipeline that plain diffusers reads from a folder or a Hub id: safetensors, no code of the model's.

    ConfigError with diffusers' own words where it cannot.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{STOCK}{model}: diffusers cannot load it ({words[0]})") from error
    name = last_name(model)
    return Subject(pipeline.to("cuda") if torch.cuda.is_available() else pipeline, name, loaded=True)


def fingerprint_of(pipeline: Any) -> str | None:
    """Return a sha256 over the class, the weights and the settings of a pipeline, or the text that it has itself."""
    own = getattr(pipeline, "fingerprint", None)
    if isinstance(own, str):
        return own
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
        elif not parts[-1]:                                                 # of what else it is made is not known
            return None
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def attributes_of(pipeline: Any) -> str | None:
    """Return a sha256 over the attributes that an object of somebody's own class has beside its components.

    A constant for classes of hfgen and of diffusers, whose weights and settings say all. None for an attribute that
    cannot be compared, such as a function.
    """
    if type(pipeline).__module__.partition(".")[0] in ("hfgen", "diffusers"):
        return hashlib.sha256().hexdigest()
    known = {"_internal_dict", "_progress_bar_config", *pipeline.components}
    try:
        own = {name: _comparable(value) for name, value in sorted(vars(pipeline).items()) if name not in known}
    except TypeError:
        return None
    return hashlib.sha256(json.dumps([type(pipeline).__qualname__, own]).encode()).hexdigest()


def _comparable(value: Any) -> Any:
    """Return plain JSON that is equal for equal values; TypeError for those that have none."""
    if isinstance(value, nn.Module):
        return hash_of_weights(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return [[_comparable(key), _comparable(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(type(value).__name__)


def _settings(part: Any) -> dict[str, Any]:
    config: Any = getattr(part, "config", None)
    config = config.to_dict() if hasattr(config, "to_dict") else config
    found = dict(config) if isinstance(config, Mapping) else {}
    return {key: found[key] for key in sorted(found) if not key.startswith("_") and "version" not in key}


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Keep a pipeline from showing its own progress bars."""
    before = getattr(pipeline, "_progress_bar_config", {})
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(**before)
