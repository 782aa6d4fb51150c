"""Samples of a model in batches, written as a grid, a folder of images, or points: the work of `hfgen sample`."""

import difflib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfgen import images, runs
from hfgen.cards.markdown import last_name
from hfgen.data.order import derive_seed
from hfgen.errors import ConfigError
from hfgen.loading.devices import available_device, best_device
from hfgen.loading.files import read_json
from hfgen.loading.resolve import resolve
from hfgen.loading.transformers_models import CONFIG
from hfgen.pipelines.auto import AutoPipeline
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.generative import GenerativePipeline
from hfgen.sampling.request import SampleRequest, check_output


def write_samples(request: SampleRequest, output: Path | None = None) -> str:
    """Return a text on the samples that are written: a grid for an image suffix, an array for `.npy`, else a folder.

    `output`. Default: a grid `MODEL-samples.png` in the current folder. Sample i is drawn from a generator seeded with
    (seed, i); it does not depend on the number or the batch size. Raises ConfigError for another suffix, and for a
    request that the model cannot fulfil.
    """
    if output is None:
        output = Path(f"{last_name(request.model)}-samples.png")
    check_output(output)
    place: dict[str, Any] = {"device": request.device, "dtype": request.dtype}
    pipeline = open_model(request.model, sampler=request.sampler, eta=request.eta, **place, **request.conditions)
    samples = torch.cat(list(batches(pipeline, request, label_of(request, pipeline))))
    output.parent.mkdir(parents=True, exist_ok=True)
    if samples.ndim == 2:
        return write_points(samples, output)
    return write_images(samples, output)


def open_model(
    model: str | Path, device: str | None = None, dtype: str = "float32", **conditions: Any
) -> Pipeline:
    """Return the pipeline of `model` on a device, by default on an accelerator if there is one.

    `dtype`: name of the torch dtype of its networks. `conditions`: arguments of the pipeline; None for its default.
    Raises ConfigError for a device that is not there, for a pipeline that needs images, and for an argument that the
    pipeline does not have.
    """
    place = best_device() if device is None else available_device(device)
    pipeline = AutoPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    parameters = inspect.signature(pipeline.__call__).parameters
    # refuse a pipeline that needs arguments, such as images
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if needed:
        raise ConfigError(f"{model}: {type(pipeline).__name__} makes no images from noise alone, it needs "
                          f"{', '.join(needed)}; use Python")  # fmt: skip
    # check the conditions
    for name, value in conditions.items():
        if value is not None and name not in parameters:
            raise ConfigError(f"--{name.replace('_', '-')}: a {type(pipeline).__name__} does not take it; leave it out")
    pipeline.to(place)
    return pipeline


def num_classes(pipeline: Pipeline) -> int | None:
    """Return the number of classes of `pipeline` without the null class; None for a model without classes."""
    return pipeline.num_classes if isinstance(pipeline, GenerativePipeline) else None


def class_names(model: str | Path, known: int | None) -> list[str] | None:
    """Return the names of the `known` classes, from the model's run or its published files; None without such names."""
    # read the record of the run, or the published names
    run = runs.find(model)
    if run is not None:
        names = runs.class_names(run)
    else:
        path = resolve(model) / CONFIG
        published = read_json(path).get("id2label") if path.is_file() else None
        names = list(map(str, published.values())) if isinstance(published, dict) else []
    # take names that are unique
    return names if names and len(set(names)) == known else None


def label_of(request: SampleRequest, pipeline: Pipeline) -> int | None:
    """Return the requested class as a number; None if there is none.

    Raises ConfigError, with the nearest name, for a name that no class of the model has.
    """
    # take a number
    label = request.label
    if label is None or isinstance(label, int):
        return label
    # look the name up
    names = class_names(request.model, num_classes(pipeline)) or []
    if label in names:
        return names.index(label)
    near = difflib.get_close_matches(label, names, 1)
    hint = f"did you mean {near[0]!r}? there are {', '.join(names)}" if near else f"there are {', '.join(names)}"
    if not names:
        hint = "its classes have numbers only"
    raise ConfigError(f"--label {label}: {request.model} has no such class; {hint}")


def batches(pipeline: Pipeline, request: SampleRequest, labels: int | list[int] | None) -> Iterator[torch.Tensor]:
    """Yield the requested samples in batches on the CPU: images (B, C, H, W) in [0, 1], or points (B, 2).

    `labels`: one class for all samples, or one for each.
    """
    arguments = request.arguments
    for first in range(0, request.number, request.batch_size):
        last = min(request.number, first + request.batch_size)
        # choose classes and generators of this batch
        if labels is not None:
            arguments["class_labels"] = labels[first:last] if isinstance(labels, list) else labels
        generators = [torch.Generator().manual_seed(derive_seed(request.seed, i)) for i in range(first, last)]
        # sample
        result = pipeline(batch_size=last - first, generator=generators, output_type="pt", **arguments).images
        yield result.cpu()


def write_points(points: torch.Tensor, output: Path) -> str:
    """Return a text on points (N, 2) in data coordinates that are written as a `.npy` array, or as a scatter plot."""
    if output.suffix == ".npy":
        np.save(output, points.numpy())
        return f"{len(points):,} points, an array (N, 2) of float32 in data coordinates: {output}"
    # plot them
    reach = float(points.abs().max()) * 1.2
    if not output.suffix:
        output.mkdir(parents=True, exist_ok=True)
        output = output / "points.png"
    images.scatter(points, -reach, reach).save(output)
    return f"{len(points):,} points, a plot: {output}"


def write_images(samples: torch.Tensor, output: Path) -> str:
    """Return a text on images (N, C, H, W) in [0, 1] that are written as one grid, an array, or PNG files."""
    number, pictures = f"{len(samples):,} images", images.to_pil(samples * 2 - 1)
    if output.suffix == ".npy":
        np.save(output, samples.permute(0, 2, 3, 1).numpy())
        return f"{number}, an array (N, H, W, C) of float32 in [0, 1]: {output}"
    if output.suffix:
        images.grid(pictures).save(output)
        return f"{number}, a grid: {output}"
    # one file each
    output.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(output / f"{i:05d}.png")
    return f"{number}, files from 00000.png on: {output}"
