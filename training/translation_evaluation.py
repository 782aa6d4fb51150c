"""The evaluation of image translation: pictures and errors of cycles, and the error where the truth is known."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from hfgen import images
from hfgen.data import load_dataset
from hfgen.data.dataset import Dataset
from hfgen.data.source import NO_LABELS
from hfgen.data.unpaired import Unpaired, known_pairs
from hfgen.metrics.translation import cycle_error, translation_error
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.translation import through

if TYPE_CHECKING:
    from hfgen.training.translation import TranslationSettings

SHOWN, MEASURED, AT_ONCE = 8, 128, 16
"""Images of each domain on the grid; that are measured, the first ones; and that go through a network together."""


def held_out(settings: "TranslationSettings", dataset: Unpaired) -> Unpaired | None:
    """Return the images of --eval-dataset-a and -b and their splits; None where none of these fields is given.

    They have the sides and channels of the training data; `paired` where --paired is given, or they are known to be.
    """
    s = settings
    if not any((s.eval_split, s.eval_split_b, s.eval_dataset_a, s.eval_dataset_b)):
        return None
    split = s.eval_split or "train"
    a = _like(dataset.a, s, s.eval_dataset_a or s.dataset_a, split)
    b = _like(dataset.b, s, s.eval_dataset_b or s.dataset_b, s.eval_split_b or split)
    return Unpaired(a, b, paired=s.paired or known_pairs(a, b), crop=s.crop)


def _like(trained: Dataset, s: "TranslationSettings", name: str, split: str) -> Dataset:
    """Return a dataset with the sides and channels of the one that is trained on."""
    channels, height, width = trained.shape
    choices: dict[str, Any] = {key: getattr(s, key) for key in ("image_column", "background", "skip_bad_images")}
    choices |= {"resolution": (height, width), "channels": channels, "label_column": NO_LABELS}
    return load_dataset(name, split=split, **choices)


def evaluate(nets: Mapping[str, nn.Module], dataset: Unpaired) -> dict[str, float]:
    """Return `eval_cycle_error_a` and `_b`, and of pairs `eval_translation_error_a2b` and `_b2a` (metrics.translation).

    Of the first 128 images of each domain, with a crop of their middle.
    """
    real = {"a": dataset.middle(dataset.a.tensor(MEASURED)), "b": dataset.middle(dataset.b.tensor(MEASURED))}
    found: dict[str, float] = {}
    for x, y in ("ab", "ba"):
        made = translated(nets[f"generator_{x}2{y}"], real[x])
        found[f"eval_cycle_error_{x}"] = cycle_error(real[x], translated(nets[f"generator_{y}2{x}"], made))
        if dataset.paired:
            found[f"eval_translation_error_{x}2{y}"] = translation_error(made, real[y], real[x])
    return found


@torch.no_grad()
def translated(net: Any, x: Tensor) -> Tensor:
    """Return what a network makes of images x (N, C, H, W) in [-1, 1], all on the CPU."""
    return torch.cat([through(net, part.to(net.device)).cpu() for part in x.split(AT_ONCE)])


def preview(pipeline: Pipeline, dataset: Unpaired) -> Image.Image:
    """Return a grid: images of A, their translations, those translated back; then the same from B."""
    shown = {"a": dataset.middle(dataset.a.tensor(SHOWN)), "b": dataset.middle(dataset.b.tensor(SHOWN))}
    columns, pictures = min(map(len, shown.values())), list[Image.Image]()
    for x, y in ("ab", "ba"):
        real, nets = shown[x][:columns], pipeline.components
        made = translated(nets[f"generator_{x}2{y}"], real)
        for row in (real, made, translated(nets[f"generator_{y}2{x}"], made)):
            pictures += [picture.convert("RGB") for picture in images.to_pil(row)]
    return images.grid(pictures, columns)
