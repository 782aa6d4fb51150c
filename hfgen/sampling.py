"""Samples of a model in batches, written as a grid, a folder of images, or points: the work of `hfgen sample`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfgen import images
from hfgen.data.order import derive_seed
from hfgen.errors import ConfigError
from hfgen.pipelines.auto import AutoPipeline
from hfgen.pipelines.base import Pipeline

GRID_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def write_samples(
    model: str,
    output: Path,
    number: int,
    num_steps: int | None,
    seed: int,
    label: int | None,
    batch_size: int,
    sampler: str | None = None,
    eta: float | None = None,
    **conditions: Any,
) -> None:
    """Write `number` samples of `model` to `output`: a grid for an image suffix, an array for `.npy`, else a folder.

    Sample i is drawn from a generator seeded with (seed, i); it does not depend on the number or the batch size.
    `conditions`: further arguments of the pipeline: prompt, guidance_scale, negative_prompt. Raises ConfigError for
    another suffix, and as `open_model`.
    """
    if output.suffix not in (*GRID_SUFFIXES, ".npy", ""):
        raise ConfigError(f"-o {output}: must be a folder, or end in one of {', '.join(GRID_SUFFIXES)}, .npy")
    pipeline = open_model(model, sampler=sampler, eta=eta, **conditions)
    samples = torch.cat(list(batches(pipeline, number, num_steps, seed, label, batch_size, sampler, eta, **conditions)))
    if samples.ndim == 2:
        write_points(samples, output)
    else:
        write_images(samples, output)


def open_model(model: str | Path, **conditions: Any) -> Pipeline:
    """Return the pipeline of `model`, on the GPU if there is one.

    `conditions`: arguments of the pipeline; None for its default. Raises ConfigError for a pipeline that needs images,
    and for an argument that the pipeline does not have.
    """
    pipeline = AutoPipeline.from_pretrained(model)
    parameters = inspect.signature(pipeline.__call__).parameters
    # a pipeline that samples has a default for every argument
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if needed:
        raise ConfigError(f"{model}: {type(pipeline).__name__} makes no images from noise alone, it needs "
                          f"{', '.join(needed)}; use Python")  # fmt: skip
    # conditions
    for name, value in conditions.items():
        if value is not None and name not in parameters:
            raise ConfigError(f"--{name.replace('_', '-')}: a {type(pipeline).__name__} does not take it; leave it out")
    if torch.cuda.is_available():
        pipeline.to("cuda")
    return pipeline


def batches(
    pipeline: Pipeline,
    number: int,
    num_steps: int | None,
    seed: int,
    labels: int | list[int] | None,
    batch_size: int,
    sampler: str | None = None,
    eta: float | None = None,
    **conditions: Any,
) -> Iterator[torch.Tensor]:
    """Yield `number` samples in batches on the CPU: images (B, C, H, W) in [0, 1], or points (B, 2).

    `labels`: one class for all samples, or one for each. `conditions` as in `write_samples`.
    """
    given = {"num_steps": num_steps, "sampler": sampler, "eta": eta, **conditions}
    choices: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if labels is not None and not isinstance(labels, list):
        choices["class_labels"] = labels
    for first in range(0, number, batch_size):
        last = min(number, first + batch_size)
        if isinstance(labels, list):
            choices["class_labels"] = labels[first:last]
        generators = [torch.Generator().manual_seed(derive_seed(seed, i)) for i in range(first, last)]
        result = pipeline(batch_size=last - first, generator=generators, output_type="pt", **choices).images
        yield result.cpu()


def write_points(points: torch.Tensor, output: Path) -> None:
    """Write points (N, 2) in data coordinates as a `.npy` array, or as a scatter plot."""
    if output.suffix == ".npy":
        np.save(output, points.numpy())
        return
    reach = float(points.abs().max()) * 1.2
    output.parent.mkdir(parents=True, exist_ok=True)
    images.scatter(points, -reach, reach).save(output if output.suffix else output / "points.png")


def write_images(samples: torch.Tensor, output: Path) -> None:
    """Write images (N, C, H, W) in [0, 1] as one grid, an array, or numbered PNG files in a folder."""
    pictures = images.to_pil(samples * 2 - 1)
    if output.suffix == ".npy":
        np.save(output, samples.permute(0, 2, 3, 1).numpy())
    elif output.suffix:
        output.parent.mkdir(parents=True, exist_ok=True)
        images.grid(pictures).save(output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            picture.save(output / f"{i:05d}.png")
