"""The evaluation of image translation: pictures and errors of cycles, and the error where the truth is known."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hfgen import images
from hfgen.data.unpaired import Unpaired
from hfgen.metrics.translation import cycle_error, translation_error
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.translation import through

GRID_IMAGES, EVAL_IMAGES, BATCH_SIZE = 8, 128, 16
"""Images of each domain on the grid; that are measured, the first ones; and that go through a network together."""


def evaluate(nets: Mapping[str, nn.Module], dataset: Unpaired) -> dict[str, float]:
    """Return `eval_cycle_error_a` and `_b`, and of pairs `eval_translation_error_a2b` and `_b2a` (metrics.translation).

    Of the first 128 images of each domain, with a crop of their middle.
    """
    # take the first images of both domains
    real = {"a": dataset.middle(dataset.a.tensor(EVAL_IMAGES)), "b": dataset.middle(dataset.b.tensor(EVAL_IMAGES))}
    # translate them there and back
    errors: dict[str, float] = {}
    for x, y in ("ab", "ba"):
        made = translated(nets[f"generator_{x}2{y}"], real[x])
        errors[f"eval_cycle_error_{x}"] = cycle_error(real[x], translated(nets[f"generator_{y}2{x}"], made))
        if dataset.paired:
            errors[f"eval_translation_error_{x}2{y}"] = translation_error(made, real[y], real[x])
    return errors


@torch.no_grad()
def translated(net: Any, x: Tensor) -> Tensor:
    """Return the translations of images x (N, C, H, W) in [-1, 1], all on the CPU."""
    return torch.cat([through(net, part.to(net.device)).cpu() for part in x.split(BATCH_SIZE)])


def preview(pipeline: Pipeline, dataset: Unpaired) -> Image.Image:
    """Return a grid: images of A, their translations, those translated back; then the same from B."""
    # take the first images of both domains
    shown = {"a": dataset.middle(dataset.a.tensor(GRID_IMAGES)), "b": dataset.middle(dataset.b.tensor(GRID_IMAGES))}
    columns, pictures = min(map(len, shown.values())), list[Image.Image]()
    # translate them there and back
    for x, y in ("ab", "ba"):
        real, nets = shown[x][:columns], pipeline.components
        made = translated(nets[f"generator_{x}2{y}"], real)
        for row in (real, made, translated(nets[f"generator_{y}2{x}"], made)):
            pictures += [picture.convert("RGB") for picture in images.to_pil(row)]
    return images.grid(pictures, columns)
