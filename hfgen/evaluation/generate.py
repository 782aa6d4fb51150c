"""Samples by index: how a pipeline is asked for them, and its answer as tensors.

Sample i is a function of (model, seed, i), the i-th of `hfgen sample`: its generator is seeded with (seed, i), and its
class and caption are those of the item at position i of a seeded order of the real data, so that they come in the real
data's proportions. A pipeline that takes one generator for all, or none, gets one seeded with (seed, first index of the
batch): its samples depend on the batch size too.
"""

import hashlib
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
from hfgen.evaluation.model import CLASSES, Subject, attributes_of, quiet
from hfgen.images import from_integers, from_pil
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.denoising import DenoisingPipeline
from hfgen.schedulers.samplers import SAMPLERS

PROBES, PROBE_STEPS = 16, 2
"""Samples by which an object is told from others for the cache, and their steps."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of the samples 0, 1, ...: `labels` (n,) int64 and `captions`; None: not conditioned.

    `source` says in words where they come from.
    """

    labels: Tensor | None = None
    captions: list[str] | None = None
    source: str = "none"


class Asking:
    """Asks a model for samples, as `choices` say: num_steps, guidance_scale, sampler. Default sampler: the subject's.

    Raises ConfigError for choices that the model does not take, and for a call that needs something else.
    """

    def __init__(self, subject: Subject, conditions: Conditions, seed: int, batch_size: int, **choices: Any) -> None:
        self.subject, self.conditions, self.seed, self.batch_size = subject, conditions, seed, batch_size
        self.told = self._told(**choices)
        given = {"batch_size", "generator", *self.told, *self._conditions(range(0))}
        needed = [name for name in subject.needed if name not in given]
        if needed:
            raise ConfigError(f"{subject.name}: {subject.family} makes no samples from noise alone, it needs "
                              f"{', '.join(needed)}")  # fmt: skip

    def _told(self, num_steps: int | None, guidance_scale: float, sampler: str | None) -> dict[str, Any]:
        """Return the arguments that are the same for all samples."""
        subject, told = self.subject, dict[str, Any]()
        if num_steps is not None and subject.steps is None and num_steps != 1:
            raise ConfigError(f"num_steps must be 1, {subject.name} makes samples in one step; got {num_steps}")
        sampler = subject.sampler if sampler is None else sampler
        if num_steps is None and isinstance(subject.pipeline, DenoisingPipeline) and sampler in SAMPLERS:
            num_steps = min(SAMPLERS[sampler].steps, int(subject.pipeline.scheduler.config.num_train_timesteps))
        if num_steps is not None and subject.steps is not None:
            told[subject.steps] = num_steps
        if "guidance_scale" in subject.parameters:
            told["guidance_scale"] = guidance_scale
        elif guidance_scale != 1:
            raise ConfigError(f"guidance_scale must be 1: {subject.family} cannot be guided, got {guidance_scale}")
        if sampler is not None:
            if "sampler" not in subject.parameters:
                raise ConfigError(f"sampler must be left out: {subject.family} takes none, got {sampler!r}")
            told["sampler"] = sampler
        if "output_type" in subject.parameters:
            told["output_type"] = "pt" if isinstance(subject.pipeline, Pipeline) else "np"
        return told

    def _conditions(self, rows: range) -> dict[str, Any]:
        found: dict[str, Any] = {}
        labels, captions = self.conditions.labels, self.conditions.captions
        if labels is not None:
            wanted = {"target": self.subject.num_targets, "class_labels": self.subject.num_classes}
            foreign = not isinstance(self.subject.pipeline, Pipeline)
            chosen = labels[list(rows)].tolist()
            found |= {name: chosen for name in CLASSES if name in self.subject.parameters and (wanted[name] or foreign)}
        if captions is not None:
            found["prompt"] = [captions[i] for i in rows]
        return found

    def check(self) -> None:
        """Raise ConfigError for what the model refuses, as far as it can be asked without making a sample."""
        pipeline: Any = self.subject.pipeline
        arguments = self._arguments(range(1))
        if not isinstance(pipeline, Pipeline):
            return
        arguments.pop("output_type", None)
        try:
            with torch.no_grad():
                pipeline.states(**arguments)                               # checks at once; what it yields is not asked
        except ConfigError as error:
            raise ConfigError(f"{self.subject.name}: {error}") from error

    def _arguments(self, rows: range) -> dict[str, Any]:
        """Return all that a call for the samples `rows` is given."""
        subject, arguments = self.subject, {**self.told, **self._conditions(rows)}
        if "batch_size" in subject.parameters:
            arguments["batch_size"] = len(rows)
        elif not {"prompt", *CLASSES} & arguments.keys():
            raise ConfigError(f"{subject.name}: a call of {subject.family} must take batch_size, it takes "
                              f"{', '.join(subject.parameters) or 'nothing'}")  # fmt: skip
        if "generator" in subject.parameters:
            each = [torch.Generator().manual_seed(derive_seed(self.seed, i)) for i in rows]
            one = torch.Generator().manual_seed(derive_seed(self.seed, rows.start))
            arguments["generator"] = each if subject.listed else one
        return arguments

    def __call__(self, rows: range) -> Tensor:
        """Return the samples `rows`, float32 on the CPU: images (B, C, H, W) in [-1, 1], or points (B, 2)."""
        subject, arguments = self.subject, self._arguments(rows)
        seed = None if "generator" in arguments else derive_seed(self.seed, rows.start)
        with _seeded(seed), torch.no_grad(), quiet(subject.pipeline):
            samples = tensor_of(subject.pipeline(**arguments))
        if len(samples) != len(rows):
            raise DataError(f"{subject.name}: gave {len(samples)} samples where {len(rows)} were asked for")
        return samples

    def batches(self, count: int) -> list[range]:
        """Return the indices 0 to `count` in batches, which are the same in any number of processes."""
        return [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]

    def at(self, indices: list[int], count: int) -> Tensor:
        """Return the samples `indices` of `count`, in their order, each made in the batch that it belongs to."""
        batches = self.batches(count)
        made = {b: self(batches[b]) for b in sorted({i // self.batch_size for i in indices})}
        return torch.stack([made[i // self.batch_size][i % self.batch_size] for i in indices])


def identity_of(asking: Asking) -> str | None:
    """Return a sha256 that identifies a model for the cache; None for one that cannot be identified.

    Files, and objects with a text `fingerprint`, are identified by their fingerprint. Any other object may depend on
    more than its weights and settings: on code, attributes, a scheduler's state. Its identity also covers its
    attributes and its first 16 samples, in 2 steps where it takes several.
    """
    subject = asking.subject
    if subject.fingerprint is None or subject.loaded or isinstance(getattr(subject.pipeline, "fingerprint", None), str):
        return subject.fingerprint
    if (attributes := attributes_of(subject.pipeline)) is None:
        return None
    probe = copy(asking)
    if subject.steps is not None:
        probe.told = {**asking.told, subject.steps: min(PROBE_STEPS, asking.told.get(subject.steps, PROBE_STEPS))}
    try:
        samples = probe(range(PROBES)).contiguous()
    except ValueError:                                                      # so few steps are too few for it
        return None
    digest = hashlib.sha256(f"{subject.fingerprint} {attributes} {tuple(samples.shape)}".encode())
    digest.update(samples.numpy().data)
    return digest.hexdigest()


def conditions_for(subject: Subject, data: Dataset, count: int, seed: int) -> Conditions:
    """Return what the first `count` samples of a model are asked to be, in the proportions of the real data.

    Classes are in equal shares where the data have no labels. Raises ConfigError where data and model do not fit.
    """
    items = torch.from_numpy(stretch(derive_seed(seed, "conditions"), len(data), 0, count)[1].copy())
    captions = None
    if subject.reads_text:
        if data.captions is None:
            raise ConfigError(f"{subject.name} reads captions, and {data.name} gives none: name their column with "
                              "caption_column (--caption-column)")  # fmt: skip
        captions = [data.captions[i] for i in items.tolist()]
    classes, labels = subject.num_targets or subject.num_classes, data.labels()
    foreign = not isinstance(subject.pipeline, Pipeline) and any(name in subject.parameters for name in CLASSES)
    if classes is None and not foreign:
        return Conditions(None, captions, "captions of the data" if captions else "none")
    if labels is None:
        if classes is None:
            raise ConfigError(f"{subject.name} takes classes, and {data.name} has no labels: name their column with "
                              "label_column (--label-column)")  # fmt: skip
        return Conditions(torch.arange(count) % classes, captions, "classes in equal shares")
    if classes is not None and data.num_classes != classes:
        raise ConfigError(f"{subject.name} makes {classes} classes, {data.name} has {data.num_classes}; judge it with "
                          "data of its own classes, or with label_column='none' in equal shares")  # fmt: skip
    words = "classes and captions of the data" if captions else "classes of the data"
    return Conditions(labels[items], captions, words)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global generators inside, if there is a seed, and leave them as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield


def tensor_of(output: Any) -> Tensor:
    """Return what a call gave as float32 on the CPU: images (B, C, H, W) in [-1, 1], or points (B, 2).

    Understood are `.images`, a tuple that begins with them, or the images themselves: a list of PIL images, an array
    (B, H, W, C) or a tensor (B, C, H, W), in [0, 1] or of bytes.
    """
    given = output.images if hasattr(output, "images") else output[0] if isinstance(output, tuple) else output
    if isinstance(given, list) and given and all(isinstance(image, Image.Image) for image in given):
        return from_pil([image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB") for image in given])
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given)
        given = given.permute(0, 3, 1, 2) if given.ndim == 4 else given
    if not isinstance(given, Tensor) or given.ndim not in (2, 4):
        raise DataError(f"a model must give images as PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), or "
                        f"points (B, 2); got {type(given).__name__}{tuple(getattr(given, 'shape', ()))}")  # fmt: skip
    given = given.detach().cpu()
    if given.dtype == torch.uint8:
        return from_integers(given)
    return given.float() if given.ndim == 2 else given.float() * 2 - 1
