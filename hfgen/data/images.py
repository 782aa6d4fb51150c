"""Datasets of images: decoded once and kept in memory, or decoded by workers batch by batch."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hfgen.data.dataset import Batch, Dataset
from hfgen.data.decode import Layout, Pixels, decode
from hfgen.data.order import Ints, stretch, uniforms
from hfgen.data.source import Labels, Source
from hfgen.errors import DataError
from hfgen.images import from_integers


class Images(Dataset):
    """Base of image datasets: labels, captions, flips and the conversion of integers to [-1, 1]."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        top: int,
        *,
        fingerprint: str,
        labels: Labels | None = None,
        captions: list[str] | None = None,
        flip: bool = False,
    ) -> None:
        self.name, self.shape, self.top, self.fingerprint, self.flip = name, shape, top, fingerprint, flip
        self._labels: torch.Tensor | None = None
        if labels is not None:
            self.num_classes, self.class_names = labels.num_classes, labels.names
            self._labels = torch.from_numpy(labels.values)
        self.captions = captions

    def labels(self) -> torch.Tensor | None:
        """Return the labels of all images in order, int64 (N,) in [0, num_classes - 1]; None without labels."""
        return self._labels

    def describe(self) -> str:
        """Return a description such as `digits: 1,797 images 1x8x8, 10 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {len(self):,} images {'x'.join(map(str, self.shape))}{classes}"

    def finish(self, pixels: torch.Tensor, seed: int, epochs: Ints, indices: Ints) -> Batch:
        """Return the batch of integer `pixels` (b, C, H, W): scaled to [-1, 1], flipped, with labels and captions."""
        # images
        x = from_integers(pixels, self.top)
        if self.flip:
            flipped = torch.from_numpy(uniforms(seed, epochs, indices, "flip") < 0.5).to(x.device)
            x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        # labels and captions
        batch: Batch = {"x": x}
        if self._labels is not None:
            batch["label"] = self._labels[torch.from_numpy(indices)].to(x.device)
        if self.captions is not None:
            batch["caption"] = [self.captions[i] for i in indices]
        return batch


class ResidentImages(Images):
    """Images decoded in memory, uint8 or uint16 (N, C, H, W); on the device of the batches if they fit."""

    def __init__(self, name: str, pixels: Pixels, top: int, **options: Any) -> None:
        super().__init__(name, pixels.shape[1:], top, **options)
        self._pixels = torch.from_numpy(pixels)
        self._on: dict[torch.device, torch.Tensor] = {}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` images (default: all), unflipped: float32 (n, C, H, W) in [-1, 1]."""
        return from_integers(self._pixels[:n], self.top)

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the images `indices` on `device`, flipped as a function of (seed, epoch, index)."""
        pixels = self._pixels_on(device)
        chosen = pixels.index_select(0, torch.from_numpy(indices).to(pixels.device))
        return self.finish(chosen.to(device), seed, epochs, indices)

    def _pixels_on(self, device: torch.device) -> torch.Tensor:
        """Return all pixels; on a CUDA `device` if they are uint8 and take at most a quarter of its free memory."""
        if device.type != "cuda" or self._pixels.dtype != torch.uint8:
            return self._pixels
        if device not in self._on:
            fits = self._pixels.numel() <= torch.cuda.mem_get_info(device)[0] // 4
            self._on[device] = self._pixels.to(device) if fits else self._pixels
        return self._on[device]


class _Decoded(TorchDataset[tuple[Ints, Ints, torch.Tensor]]):
    """Decoded batches by number, for worker processes."""

    def __init__(self, images: "LazyImages", seed: int, batch_size: int, rows: slice) -> None:
        self.images, self.seed, self.batch_size, self.rows = images, seed, batch_size, rows

    def __getitem__(self, k: int) -> tuple[Ints, Ints, torch.Tensor]:
        epochs, indices = stretch(self.seed, len(self.images), k * self.batch_size, self.batch_size)
        return epochs[self.rows], indices[self.rows], self.images.pixels(indices[self.rows])


class LazyImages(Images):
    """Images that stay encoded and are decoded batch by batch, ahead of time with `num_workers` > 0."""

    def __init__(self, source: Source, kept: Ints, layout: Layout, num_workers: int, **options: Any) -> None:
        super().__init__(source.name, layout.shape, layout.top, **options)
        self.source, self.kept, self.layout, self.num_workers = source, kept, layout, num_workers

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.kept)

    def pixels(self, indices: Iterable[int]) -> torch.Tensor:
        """Return the images `indices` as integers (b, C, H, W) in [0, top].

        Raises DataError for an image that has become unreadable.
        """
        return torch.from_numpy(np.stack([self._decode(int(self.kept[i])) for i in indices]))

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` images (default: all), unflipped: float32 (n, C, H, W) in [-1, 1]."""
        return from_integers(self.pixels(range(len(self))[:n]), self.top)

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the images `indices` on `device`, flipped as a function of (seed, epoch, index)."""
        return self.finish(self.pixels(indices).to(device), seed, epochs, indices)

    def _decode(self, i: int) -> Pixels:
        try:
            return decode(self.source.read(i), self.layout)
        except Exception as error:
            raise DataError(f"{self.source.where(i)}: cannot be read any more ({error})") from error

    def _batches(self, seed: int, batch_size: int, first: int, rows: slice, device: torch.device) -> Iterator[Batch]:
        # a generator of its own, because the loader would advance the global one
        loader = DataLoader(
            _Decoded(self, seed, batch_size, rows),
            batch_size=None,
            sampler=count(first),
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )
        for epochs, indices, pixels in loader:
            yield self.finish(pixels.to(device), seed, epochs, indices)


def _unchanged(batch: Any) -> Any:
    """Return the batch of a worker (a named function, because others do not pickle)."""
    return batch
