"""Pictures of an evaluation: a grid of samples, and each sample that is nearest to a training image beside it."""

from typing import Any

import torch
from PIL import Image

from hfgen import images
from hfgen.evaluation.context import Case
from hfgen.evaluation.features import SHOWN

GAP = 12
"""Pixels between one pair and the next."""


def draw(case: Case, privacy: dict[str, Any] | None) -> dict[str, Image.Image]:
    """Return `samples`, and of images whose memorisation was measured `closest`."""
    shown = case.samples.images[:SHOWN]
    if case.real.in_plane:
        real = case.compared
        reach = float(real.abs().max()) * 1.2
        return {"samples": images.scatter(case.samples.features, -reach, reach, behind=real)}
    found = {"samples": images.grid(images.to_pil(shown))}
    if privacy is not None:
        found["closest"] = closest(case, privacy["pairs"])
    return found


def closest(case: Case, pairs: list[list[Any]]) -> Image.Image:
    """Return the closest pairs in rows of four, each the sample to the left of its training image."""
    samples = case.images([pair[0] for pair in pairs])
    position = {int(item): place for place, item in enumerate(case.real.indices)}
    real = case.real([position[pair[1]] for pair in pairs])
    both = torch.stack([samples, real.to(samples)], 1)                                  # (P, 2, C, H, W)
    sheets = [images.grid(images.to_pil(pair), columns=2) for pair in both]
    width, height, columns = sheets[0].width + GAP, sheets[0].height, min(4, len(sheets))
    rows = -(-len(sheets) // columns)
    sheet = Image.new(sheets[0].mode, (columns * width - GAP, rows * height), "white")
    for i, picture in enumerate(sheets):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
