"""Items that stream through extractors in bounded memory, in one process or in several: features stay, images go."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgen.evaluation.distributed import Processes
from hfgen.metrics.distances import Moments
from hfgen.metrics.features import ClassifierFeatures, Extractor

FEATURE_BYTES, IMAGE_BYTES = 2**30, 2**28
"""Bytes that features, and images, may take in memory."""

SHOWN = 64
"""Samples that always stay, for pictures."""

LARGEST_DIM = 4096
"""Dimensions of features beyond which their covariance is not computed."""


@dataclass
class Collected:
    """Features of `count` items.

    `features` (k, D): of the first k, as many as fit in memory; `moments`: of all, if k is less; `images`: the first
    few; `seen` (count,): the classes that a classifier predicts.
    """

    count: int
    features: Tensor
    moments: Moments | None
    images: Tensor
    seen: Tensor | None

    def packed(self) -> dict[str, Tensor]:
        """Return everything as tensors by name."""
        found = {"features": self.features, "images": self.images}
        if self.moments is not None:
            found["moments"] = self.moments.packed()
        return found | ({} if self.seen is None else {"seen": self.seen})

    @classmethod
    def unpacked(cls, count: int, tensors: dict[str, Tensor]) -> "Collected":
        """Return what `packed` has packed."""
        moments = Moments.unpacked(tensors["moments"]) if "moments" in tensors else None
        return cls(count, tensors["features"], moments, tensors["images"], tensors.get("seen"))


@dataclass
class Collector:
    """How items become features: by an `extractor`, and by a `classifier` their classes; items have `shape`."""

    extractor: Extractor
    classifier: ClassifierFeatures | None
    shape: tuple[int, ...]
    processes: Processes

    def __call__(
        self, make: Callable[[range], Tensor], batches: list[range], keep_images: bool
    ) -> Collected | None:
        """Return what is known of the items of all `batches`, in the first process; None in the others.

        Batch b is made in process b modulo their number. `keep_images`: as many as fit; otherwise none stay.
        """
        parts = self.processes.gathered(lambda: self._share(make, batches, keep_images))
        return None if parts is None else self._joined(parts, batches)

    def _share(self, make: Callable[[range], Tensor], batches: list[range], keep_images: bool) -> dict[str, Any]:
        """Return what this process has found, by the first index of each batch."""
        size = math.prod(self.shape)
        count = batches[-1].stop if batches else 0
        dim = self.extractor.dim or size
        kept = min(count, FEATURE_BYTES // (4 * dim))
        shown = min(count, max(SHOWN, IMAGE_BYTES // (4 * size))) if keep_images else 0
        found: dict[str, Any] = {"features": {}, "images": {}, "seen": {}, "moments": None}
        moments = Moments(dim) if kept < count and dim <= LARGEST_DIM else None
        for rows in batches[self.processes.rank :: self.processes.count]:
            items = make(rows)
            features = self.extractor(items).cpu()
            found["features"][rows.start] = features[: max(0, kept - rows.start)].clone()
            found["images"][rows.start] = items[: max(0, shown - rows.start)].clone()
            if self.classifier is not None and items.ndim == 4:
                found["seen"][rows.start] = self.classifier.labels(items).cpu()
            if moments is not None:
                moments.update(features)
        found["moments"] = None if moments is None else moments.packed()
        return found

    def _joined(self, parts: list[dict[str, Any]], batches: list[range]) -> Collected:
        def in_order(name: str) -> Tensor | None:
            pieces = {start: piece for part in parts for start, piece in part[name].items()}
            return torch.cat([pieces[start] for start in sorted(pieces)]) if pieces else None

        packed = [Moments.unpacked(part["moments"]) for part in parts if part["moments"] is not None]
        for other in packed[1:]:
            packed[0].merge(other)
        features, images = in_order("features"), in_order("images")
        assert features is not None and images is not None
        return Collected(batches[-1].stop, features, packed[0] if packed else None, images, in_order("seen"))
