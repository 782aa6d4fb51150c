"""What `hfgen sample` does: generate in batches and write a grid, a folder of images, or points."""

import inspect
from pathlib import Path

import numpy as np
import torch

from hfgen import images
from hfgen.data.order import derive_seed
from hfgen.errors import ConfigError
from hfgen.pipelines.auto import AutoPipeline

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
) -> None:
    """Write `number` samples of `model` to `output`: one sheet for an image suffix, `.npy` for points, else a folder.

    Sample i comes from a generator seeded with (seed, i): it does not change with the number or the batch size.
    """
    if output.suffix not in (*GRID_SUFFIXES, ".npy", ""):
        raise ConfigError(f"-o {output}: must be a folder, or end in one of {', '.join(GRID_SUFFIXES)}, .npy")
    pipeline = AutoPipeline.from_pretrained(model)
    parameters = inspect.signature(pipeline.__call__).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if needed:
        wanted = f"{type(pipeline).__name__} makes no images from noise alone, it needs {', '.join(needed)}"
        raise ConfigError(f"{model}: {wanted}; use Python")
    if torch.cuda.is_available():
        pipeline.to("cuda")
    given = {"class_labels": label, "sampler": sampler, "eta": eta}
    choices = {name: value for name, value in given.items() if value is not None}
    if "sampler" in choices and "sampler" not in parameters:
        raise ConfigError(f"--sampler: a {type(pipeline).__name__} has one way to sample; leave it out")
    batches = []
    for first in range(0, number, batch_size):
        count = min(batch_size, number - first)
        generators = [torch.Generator().manual_seed(derive_seed(seed, i)) for i in range(first, first + count)]
        result = pipeline(
            batch_size=count, num_steps=num_steps, generator=generators, output_type="pt", **choices
        ).images
        batches.append(result.cpu())
    samples = torch.cat(batches)
    if samples.ndim == 2:
        write_points(samples, output)
    else:
        write_images(samples, output)


def write_points(points: torch.Tensor, output: Path) -> None:
    """Write (N, 2) points as a `.npy` array, or as a picture of them."""
    if output.suffix == ".npy":
        np.save(output, points.numpy())
        return
    reach = float(points.abs().max()) * 1.2
    output.parent.mkdir(parents=True, exist_ok=True)
    images.scatter(points, -reach, reach).save(output if output.suffix else output / "points.png")


def write_images(samples: torch.Tensor, output: Path) -> None:
    """Write (N, C, H, W) images in [0, 1] as one sheet, an array, or numbered PNG files in a folder."""
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
