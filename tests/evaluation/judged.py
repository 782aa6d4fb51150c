"""Helpers of the tests of evaluation: models that return reference images, and a classifier of digits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hfgen
from hfgen.data import load_dataset
from hfgen.data.images import ResidentImages
from hfgen.data.source import Labels
from hfgen.metrics.usefulness import Training, train_classifier

QUICK = {"resamples": 50, "progress": False}


class Given:
    """A model that gives prepared samples, in [-1, 1] or in the plane: sample i is row i modulo their number."""

    def __init__(self, samples: Tensor, batch_size: int = 64, fingerprint: str | None = None) -> None:
        self.samples, self.calls, self.fingerprint = samples, 0, fingerprint

    def __call__(self, batch_size: int, **unused: Any) -> Tensor:
        """Return the next `batch_size` samples: the judge asks for them in order."""
        rows = (torch.arange(batch_size) + self.calls) % len(self.samples)
        self.calls += batch_size
        chosen = self.samples[rows]
        return chosen if chosen.ndim == 2 else chosen / 2 + 0.5


def shares(*sizes: int) -> list[ResidentImages]:
    """Return digits in disjoint random shares: in their own order later ones are of other writers."""
    data: Any = load_dataset("digits")
    order, found = np.random.default_rng(0).permutation(len(data)), []
    for i, end in enumerate(np.cumsum(sizes)):
        rows = order[end - sizes[i] : end]
        labels = Labels(data.labels().numpy()[rows], 10, data.class_names)
        pixels = data._pixels.numpy()[rows]
        found.append(ResidentImages(f"share {i}", pixels, 16, labels=labels, fingerprint=f"{sizes} {i}"))
    return found


def digits_classifier(folder: Path) -> str:
    """Save a classifier that is right on every digit, and return the folder."""
    data = load_dataset("digits")
    images, labels = data.tensor(), data.labels()
    assert labels is not None
    net = train_classifier([(images, labels)], 10, Training(steps=250, batch_size=64, width=8), 0)
    assert bool((net(images).logits.argmax(1) == labels).float().mean() > 0.995)
    hfgen.ClassifierPipeline(net).save_pretrained(folder)
    return str(folder)
