"""Features of items that stream through extractors in bounded memory, in one process or several; images are dropped."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgen.evaluation.cache import Cache, key_of
from hfgen.evaluation.distributed import Processes, device
from hfgen.evaluation.progress import Progress
from hfgen.evaluation.reference import ReferenceData
from hfgen.metrics.distances import Moments
from hfgen.metrics.features import ClassifierFeatures, Extractor

FEATURE_BYTES, IMAGE_BYTES = 2**30, 2**28
"""Bytes that features, and images, may take in memory."""

GRID_IMAGES = 64
"""Number of samples whose images always stay in memory, for pictures."""

BATCH_SIZE = 256
"""Number of reference items in one batch."""

LARGEST_DIM = 4096
"""Largest dimension of features whose covariance is computed."""

Items = Callable[[range], Tensor]
"""A function that returns the items of a range of indices: images (B, C, H, W) in [-1, 1], or points (B, 2)."""


@dataclass
class Features:
    """Features of `count` items.

    `features` (k, D): those of the first k items, as many as fit in memory; `moments`: those of all items if k is less
    than `count`; `images`: the first few items; `seen` (count,): the classes that a classifier predicts.
    """

    count: int
    features: Tensor
    moments: Moments | None
    images: Tensor
    seen: Tensor | None

    def packed(self) -> dict[str, Tensor]:
        """Return everything as tensors by name, in the shapes of the class's docstring; images are in [-1, 1]."""
        tensors = {"features": self.features, "images": self.images}
        if self.moments is not None:
            tensors["moments"] = self.moments.packed()
        if self.seen is not None:
            tensors["seen"] = self.seen
        return tensors

    @classmethod
    def unpacked(cls, count: int, tensors: dict[str, Tensor]) -> "Features":
        """Return the features of `packed` tensors: images (B, C, H, W) in [-1, 1], features (k, D)."""
        moments = Moments.unpacked(tensors["moments"]) if "moments" in tensors else None
        return cls(count, tensors["features"], moments, tensors["images"], tensors.get("seen"))


@dataclass
class FeatureExtraction:
    """Extraction of features by an `extractor`, and of classes by a `classifier`, from items of one `shape`."""

    extractor: Extractor
    classifier: ClassifierFeatures | None
    shape: tuple[int, ...]
    processes: Processes
    cache: Cache
    progress: Progress

    @property
    def identity(self) -> dict[str, Any]:
        """Return the extractor, the classifier and the device, as plain JSON for keys of the cache."""
        networks = {"extractor": self.extractor, "classifier": self.classifier}
        known: dict[str, Any] = dict.fromkeys(networks)
        for name, one in networks.items():
            if one is not None:
                known[name] = [type(one).__name__, one.weights_hash, one.resizer]
        return known | {"device": device().type}

    def of_reference(self, reference: ReferenceData, seed: int, name: str) -> Features | None:
        """Return the features of reference data, in the first process; None in the others. `name`: for the bar."""
        # choose key and batches
        count = reference.count
        key = key_of("real", seed=seed, real=reference.key(), fresh=reference.fresh, **self.identity)
        batches = [range(i, min(i + BATCH_SIZE, count)) for i in range(0, count, BATCH_SIZE)]

        # return items, with their progress
        def items(rows: range) -> Tensor:
            self.progress.tick(rows.start / count)
            return reference(rows)

        return self.cached(key, items, batches, name, name, keep_images=False)

    def cached(
        self, key: str | None, items: Items, batches: list[range], stage: str, title: str, keep_images: bool
    ) -> Features | None:
        """Return features from the cache, or extracted now in a stage of the bar, in the first process; None in the
        others."""
        # look in the cache, in the first process
        entry = self.cache.get(key) if self.processes.first else None
        if self.processes.from_first(lambda: entry is not None):
            self.progress.skip(stage)
            return None if entry is None else Features.unpacked(entry[0]["count"], entry[1])
        # extract now
        with self.progress.stage(stage, title):
            features = self(items, batches, keep_images)
        if features is not None:
            self.cache.put(key, {"count": features.count}, features.packed())
        return features

    def __call__(self, items: Items, batches: list[range], keep_images: bool) -> Features | None:
        """Return the features of the items of all `batches`, in the first process; None in the others.

        Batch b is processed by process b modulo their number. `keep_images`: keep as many images as fit in memory;
        otherwise none.
        """
        parts = self.processes.gathered(lambda: self._local(items, batches, keep_images))
        return None if parts is None else _joined(parts, batches[-1].stop)

    def _local(self, items: Items, batches: list[range], keep_images: bool) -> dict[str, Any]:
        """Return the results of this process, by the first index of each batch."""
        # count features and images that stay in memory
        size = math.prod(self.shape)
        count = batches[-1].stop
        dim = self.extractor.dim or size
        kept, shown = min(count, FEATURE_BYTES // (4 * dim)), 0
        if keep_images:
            shown = min(count, max(GRID_IMAGES, IMAGE_BYTES // (4 * size)))

        # extract the features of this process's batches
        local: dict[str, Any] = {"features": {}, "images": {}, "seen": {}, "moments": None}
        moments = Moments(dim) if kept < count and dim <= LARGEST_DIM else None
        for rows in batches[self.processes.rank :: self.processes.count]:
            batch = items(rows)
            features = self.extractor(batch).cpu()
            local["features"][rows.start] = features[: max(0, kept - rows.start)].clone()
            local["images"][rows.start] = batch[: max(0, shown - rows.start)].clone()
            if self.classifier is not None and batch.ndim == 4:
                local["seen"][rows.start] = self.classifier.labels(batch).cpu()
            if moments is not None:
                moments.update(features)
        if moments is not None:
            local["moments"] = moments.packed()
        return local


def _joined(parts: list[dict[str, Any]], count: int) -> Features:
    """Return the features of `count` items from the results of all processes."""
    # merge moments of all processes
    moments = None
    for part in parts:
        if part["moments"] is not None:
            local = Moments.unpacked(part["moments"])
            if moments is None:
                moments = local
            else:
                moments.merge(local)
    # join tensors in the order of the items
    features, images = _in_order(parts, "features"), _in_order(parts, "images")
    assert features is not None and images is not None
    return Features(count, features, moments, images, _in_order(parts, "seen"))


def _in_order(parts: list[dict[str, Any]], name: str) -> Tensor | None:
    """Return the tensors of all batches in the order of their first indices, joined; None if there are none."""
    pieces: dict[int, Tensor] = {}
    for part in parts:
        pieces |= part[name]
    return torch.cat([pieces[start] for start in sorted(pieces)]) if pieces else None
