"""Pictures of an evaluation: a grid of samples, and samples beside their nearest training images."""

from typing import Any

import torch
from PIL import Image

from hfgen import images
from hfgen.evaluation.context import MetricContext
from hfgen.evaluation.features import GRID_IMAGES

GAP = 12
"""Pixels between one pair and the next."""


def draw(context: MetricContext, pairs: list[list[Any]] | None) -> dict[str, Image.Image]:
    """Return the pictures `samples` and, for images with closest `pairs`, `closest`."""
    # plot points
    if context.reference.points:
        compared = context.compared
        reach = float(compared.abs().max()) * 1.2
        return {"samples": images.scatter(context.samples.features, -reach, reach, behind=compared)}
    # draw grids of images
    pictures = {"samples": images.grid(images.to_pil(context.samples.images[:GRID_IMAGES]))}
    if pairs is not None:
        pictures["closest"] = closest(context, pairs)
    return pictures


def closest(context: MetricContext, pairs: list[list[Any]]) -> Image.Image:
    """Return the closest pairs in rows of four, each sample to the left of its training image.

    `pairs`: for each pair the index of the sample, the index of the item in the dataset, and their distance.
    """
    # collect images of both sides
    samples = context.images([pair[0] for pair in pairs])
    position = {int(item): place for place, item in enumerate(context.reference.indices)}
    items = context.reference([position[pair[1]] for pair in pairs])
    both = torch.stack([samples, items.to(samples)], 1)                                 # (P, 2, C, H, W)

    # paste all pairs on one sheet
    sheets = [images.grid(images.to_pil(pair), columns=2) for pair in both]
    width, height, columns = sheets[0].width + GAP, sheets[0].height, min(4, len(sheets))
    rows = -(-len(sheets) // columns)
    sheet = Image.new(sheets[0].mode, (columns * width - GAP, rows * height), "white")
    for i, picture in enumerate(sheets):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
