"""Data that a run is measured on, and that it never trains on."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch

from hfgen.data import load_dataset
from hfgen.data.dataset import Batch, Dataset
from hfgen.training.engine.settings import values_of

BATCH_SIZE = 512
"""Images that go through a network together."""


def held_out(settings: Any, dataset: Dataset, shape: tuple[int, ...] = ()) -> Dataset | None:
    """Return the images of --eval-dataset and --eval-split, shaped like the training data; None where none are named.

    Default: the dataset that is trained on, the split train. `shape`: (C, H, W) of the images. Default: that of the
    training data.
    """
    if settings.eval_dataset is None and settings.eval_split is None:
        return None
    shape = shape or dataset.shape
    names = ("image_column", "label_column", "background", "skip_bad_images")
    caption_column = None
    if dataset.captions is not None:
        caption_column = settings.caption_column or "caption"
    return load_dataset(
        settings.eval_dataset or settings.dataset,
        split=settings.eval_split or "train",
        resolution=cast(tuple[int, int], shape[1:]),
        channels=shape[0],
        caption_column=caption_column,
        **values_of(settings, names),
    )


def batches_of(dataset: Dataset) -> Iterator[Batch]:
    """Yield all items in order, unaugmented, in batches."""
    for first in range(0, len(dataset), BATCH_SIZE):
        indices = np.arange(first, min(first + BATCH_SIZE, len(dataset)))
        yield dataset.take(0, np.zeros_like(indices), indices, torch.device("cpu"))
