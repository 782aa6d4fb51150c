"""Generation of samples by index: arguments of a model's call, and its output as tensors.

Sample i is a function of (model, seed, i), the i-th of `hfgen sample`: its generator is seeded with (seed, i), and its
class and caption are those of the item at position i of a seeded order of the reference data, whose proportions they
follow. A pipeline that takes one generator for all samples, or none, gets one seeded with (seed, first index of the
batch): its samples depend on the batch size too.
"""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hfgen.data.dataset import Dataset
from hfgen.data.order import derive_seed, stretch
from hfgen.errors import ConfigError, DataError
from hfgen.evaluation.features import Items
from hfgen.evaluation.model import CLASSES, EvaluatedModel, attributes_of, quiet
from hfgen.evaluation.progress import Progress, each_call
from hfgen.evaluation.samples import GivenSamples
from hfgen.images import from_integers, from_pil
from hfgen.schedulers.samplers import SAMPLERS

PROBES, PROBE_STEPS = 16, 2
"""Number of samples that identify an object for the cache, and their steps."""


@dataclass(frozen=True)
class SampleConditions:
    """Conditions of the samples 0, 1, ...: `labels` (n,) int64 and `captions`; None: not conditioned.

    `source`: their origin, in words.
    """

    labels: Tensor | None = None
    captions: list[str] | None = None
    source: str = "none"


class SampleGenerator:
    """Samples of a model by index, with the same `arguments` for all of them.

    Default sampler: that of the model. Raises ConfigError for arguments that the model does not take, and for a model
    that requires others.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        conditions: SampleConditions,
        seed: int,
        batch_size: int,
        num_steps: int | None = None,
        guidance_scale: float = 1.0,
        sampler: str | None = None,
    ) -> None:
        self.model, self.conditions, self.seed, self.batch_size = model, conditions, seed, batch_size
        self.arguments = common_arguments(model, num_steps, guidance_scale, sampler)
        given = {"batch_size", "generator", *self.arguments, *self._conditions(range(0))}
        missing = [name for name in model.required if name not in given]
        if missing:
            raise ConfigError(f"{model.name}: {model.family} makes no samples from noise alone, it needs "
                              f"{', '.join(missing)}")  # fmt: skip

    @property
    def steps(self) -> int | None:
        """Return the number of steps of a call; None if the model takes one step, or decides itself."""
        return self.arguments.get(self.model.steps or "")

    def check(self) -> None:
        """Raise ConfigError for arguments that the model refuses, if a pipeline of hfgen says so without a sample."""
        if self.model.given is not None:
            return
        arguments = self._call_arguments(range(1))
        if not self.model.own:
            return
        arguments.pop("output_type", None)
        try:
            with torch.no_grad():
                self.model.pipeline.states(**arguments)                     # checks its arguments; nothing is sampled
        except ConfigError as error:
            raise ConfigError(f"{self.model.name}: {error}") from error

    def __call__(self, rows: range) -> Tensor:
        """Return the samples `rows`, float32 on the CPU: images (B, C, H, W) in [-1, 1], or points (B, 2).

        Raises DataError for another number of samples.
        """
        model = self.model
        if model.given is not None:
            return model.given(rows)
        arguments = self._call_arguments(rows)
        seed = None if "generator" in arguments else derive_seed(self.seed, rows.start)
        with _seeded(seed), torch.no_grad(), quiet(model.pipeline):
            samples = tensor_of(model.pipeline(**arguments))
        if len(samples) != len(rows):
            raise DataError(f"{model.name}: gave {len(samples)} samples where {len(rows)} were requested")
        return samples

    def batches(self, count: int) -> list[range]:
        """Return the indices 0 to `count` in batches, which are the same for any number of processes."""
        return [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]

    def at(self, indices: list[int], count: int) -> Tensor:
        """Return the samples `indices` of `count`, in their order, each generated in its own batch.

        Images (B, C, H, W) in [-1, 1], or points (B, 2).
        """
        batches, generated = self.batches(count), dict[int, Tensor]()
        for i in sorted(indices):
            batch = i // self.batch_size
            if batch not in generated:
                generated[batch] = self(batches[batch])
        return torch.stack([generated[i // self.batch_size][i % self.batch_size] for i in indices])

    def _conditions(self, rows: range) -> dict[str, Any]:
        """Return the arguments for classes and captions of the samples `rows`."""
        # add classes
        arguments: dict[str, Any] = {}
        labels, captions, model = self.conditions.labels, self.conditions.captions, self.model
        if labels is not None:
            known = {"target": model.num_targets, "class_labels": model.num_classes}
            for name in CLASSES:
                if name in model.parameters and (known[name] or not model.own):
                    arguments[name] = labels[list(rows)].tolist()
        # add captions
        if captions is not None:
            arguments["prompt"] = captions[rows.start : rows.stop]
        return arguments

    def _call_arguments(self, rows: range) -> dict[str, Any]:
        """Return all arguments of the call for the samples `rows`."""
        # add the number of samples
        model, arguments = self.model, {**self.arguments, **self._conditions(rows)}
        if "batch_size" in model.parameters:
            arguments["batch_size"] = len(rows)
        elif not {"prompt", *CLASSES} & arguments.keys():
            raise ConfigError(f"{model.name}: a call of {model.family} must take batch_size, it takes "
                              f"{', '.join(model.parameters) or 'nothing'}")  # fmt: skip
        # add generators
        if "generator" in model.parameters:
            if model.takes_generators:
                arguments["generator"] = [torch.Generator().manual_seed(derive_seed(self.seed, i)) for i in rows]
            else:
                arguments["generator"] = torch.Generator().manual_seed(derive_seed(self.seed, rows.start))
        return arguments


def common_arguments(
    model: EvaluatedModel, num_steps: int | None, guidance_scale: float, sampler: str | None
) -> dict[str, Any]:
    """Return the arguments of a model's call that are the same for all samples.

    Raises ConfigError for a value that the model does not take.
    """
    # choose sampler and steps
    arguments: dict[str, Any] = {}
    if num_steps is not None and model.steps is None and num_steps != 1:
        raise ConfigError(f"num_steps must be 1, {model.name} makes samples in one step; got {num_steps}")
    if sampler is None:
        sampler = model.sampler
    if num_steps is None and model.own and sampler in SAMPLERS and "sampler" in model.parameters:
        num_steps = min(SAMPLERS[sampler].steps, int(model.pipeline.scheduler.config.num_train_timesteps))
    if num_steps is not None and model.steps is not None:
        arguments[model.steps] = num_steps

    # add guidance
    if "guidance_scale" in model.parameters:
        arguments["guidance_scale"] = guidance_scale
    elif guidance_scale != 1:
        raise ConfigError(f"guidance_scale must be 1: {model.family} cannot be guided, got {guidance_scale}")

    # add the sampler, and the type of the output
    if sampler is not None:
        if "sampler" not in model.parameters:
            raise ConfigError(f"sampler must be left out: {model.family} takes none, got {sampler!r}")
        arguments["sampler"] = sampler
    if "output_type" in model.parameters:
        arguments["output_type"] = "pt" if model.own else "np"
    return arguments


def reporting(generator: SampleGenerator, count: int, data: Dataset, progress: Progress) -> Items:
    """Return the generator as a function that also reports its progress towards `count` samples and checks shapes.

    Raises ConfigError for samples whose shape is not that of the data.
    """
    # expect the evaluations of one batch
    networks = generator.model.networks
    evaluations = generator.steps or (1000 if generator.model.steps else 1)

    def samples(rows: range) -> Tensor:
        # count the evaluations of this batch
        nonlocal evaluations
        calls, last = itertools.count(1), 0

        def report() -> None:
            nonlocal last
            last = next(calls)
            progress.tick((rows.start + len(rows) * min(1.0, (last - 1) / evaluations)) / count)

        # generate it, and check its shape
        progress.tick(rows.start / count)
        with each_call(networks, report):
            batch = generator(rows)
        evaluations = last or evaluations                                   # as many as in this batch
        generator.model.check_shape(tuple(batch.shape[1:]), data)
        return batch

    return samples


def identity_of(generator: SampleGenerator) -> str | None:
    """Return a sha256 that identifies a model for the cache; None for one that cannot be identified.

    Files, and objects with a text `fingerprint`, are identified by their fingerprint. Any other object may depend on
    more than its weights and settings: on code, attributes, a scheduler's state. Its identity also covers its
    attributes and its first 16 samples, in 2 steps if it takes several.
    """
    # identify it without samples
    model = generator.model
    if model.fingerprint is None or model.loaded or isinstance(getattr(model.pipeline, "fingerprint", None), str):
        return model.fingerprint
    if (attributes := attributes_of(model.pipeline)) is None:
        return None

    # generate the first samples
    probe = copy(generator)
    if model.steps is not None:
        probe.arguments = {**generator.arguments, model.steps: min(PROBE_STEPS, generator.steps or PROBE_STEPS)}
    try:
        samples = probe(range(PROBES)).contiguous()
    except ValueError:                                                      # the model does not allow so few steps
        return None

    # hash them
    digest = hashlib.sha256(f"{model.fingerprint} {attributes} {tuple(samples.shape)}".encode())
    digest.update(samples.numpy().data)
    return digest.hexdigest()


def conditions_for(model: EvaluatedModel, data: Dataset, count: int, seed: int) -> SampleConditions:
    """Return the conditions of the first `count` samples of a model, in the proportions of the reference data.

    Classes come in equal shares if the data have no labels. Raises ConfigError if data and model do not fit.
    """
    # take the labels of given samples
    if model.given is not None:
        return conditions_of_samples(model.given, data)
    # take captions
    items = torch.from_numpy(stretch(derive_seed(seed, "conditions"), len(data), 0, count)[1].copy())
    captions = None
    if model.reads_text:
        if data.captions is None:
            raise ConfigError(f"{model.name} reads captions, and {data.name} gives none: name their column with "
                              "caption_column (--caption-column)")  # fmt: skip
        captions = [data.captions[i] for i in items.tolist()]

    # take classes
    classes, labels = model.num_targets or model.num_classes, data.labels()
    if classes is None and not model.takes_classes:
        return SampleConditions(None, captions, "captions of the data" if captions else "none")
    if labels is None:
        if classes is None:
            raise ConfigError(f"{model.name} takes classes, and {data.name} has no labels: name their column with "
                              "label_column (--label-column)")  # fmt: skip
        return SampleConditions(torch.arange(count) % classes, captions, "classes in equal shares")
    if classes is not None and data.num_classes != classes:
        raise ConfigError(f"{model.name} makes {classes} classes, {data.name} has {data.num_classes}; evaluate it with "
                          "data of its own classes, or with label_column='none' in equal shares")  # fmt: skip
    source = "classes and captions of the data" if captions else "classes of the data"
    return SampleConditions(labels[items], captions, source)


def conditions_of_samples(samples: GivenSamples, data: Dataset) -> SampleConditions:
    """Return the labels of given samples if they are of the classes of the reference data, else no conditions."""
    named = samples.class_names is not None and data.class_names is not None
    other = samples.num_classes != data.num_classes or (named and samples.class_names != data.class_names)
    if samples.labels is None or other:
        return SampleConditions()
    return SampleConditions(samples.labels, None, "labels of the samples")


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the global generators of torch inside, and restore them; None leaves them alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield


def tensor_of(output: Any) -> Tensor:
    """Return the output of a call as float32 on the CPU: images (B, C, H, W) in [-1, 1], or points (B, 2).

    The output may be an object with `.images`, a tuple that begins with the images, or the images themselves: a list of
    PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), in [0, 1] or uint8. Raises DataError for anything else.
    """
    # find the images of the output
    images = output
    if hasattr(output, "images"):
        images = output.images
    elif isinstance(output, tuple):
        images = output[0]
    if isinstance(images, list) and images and all(isinstance(image, Image.Image) for image in images):
        return from_pil([_converted(image) for image in images])

    # convert them to a tensor, channels first
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
        if images.ndim == 4:
            images = images.permute(0, 3, 1, 2)
    if not isinstance(images, Tensor) or images.ndim not in (2, 4):
        raise DataError(f"a model must give images as PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), or "
                        f"points (B, 2); got {type(images).__name__}{tuple(getattr(images, 'shape', ()))}")  # fmt: skip

    # scale them to [-1, 1]
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return from_integers(images)
    if images.ndim == 2:
        return images.float()
    return images.float() * 2 - 1


def _converted(image: Image.Image) -> Image.Image:
    """Return a PIL image in grey, RGB or RGBA."""
    return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
