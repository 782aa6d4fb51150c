"""Images as sequences of entries, integers in [0, V - 1], which autoregressive models draw one after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.checks import require, require_int
from hfgen.errors import ConfigError

MAX_VOCABULARY = 2**16
"""Largest number of values of an entry."""


@dataclass(frozen=True)
class PixelEntries:
    """The map between images (B, C, H, W) in [-1, 1] and entries (B, n), int64 in [0, V - 1], in raster order.

    `levels` L: even grey levels, to which pixels are rounded. `patch_size` p = 1: an entry is one channel of a pixel, n
    = H W C, V = L; the channels of a pixel follow each other. p > 1: an entry is a patch of p x p pixels with all
    channels, n = H W / p^2, V = L^(C p^2), the patch's first pixel being its most significant digit. Raises ConfigError
    for a shape that p does not divide, and for more than 65,536 values.
    """

    shape: tuple[int, int, int]
    levels: int
    patch_size: int = 1

    def __post_init__(self) -> None:
        require_int("levels", self.levels, 2, MAX_VOCABULARY)
        require_int("patch_size", self.patch_size, 1, max(self.shape))
        _, height, width = self.shape
        p = self.patch_size
        if height % p or width % p:
            raise ConfigError(f"patch_size must divide the sides of images, {height} and {width}, got {p}")
        require(self.levels**self.digits <= MAX_VOCABULARY, "patch_size", p,
                f"so small that a patch has at most {MAX_VOCABULARY:,} values: it has "
                f"{self.levels}^{self.digits}, of {self.levels} levels")  # fmt: skip

    @property
    def digits(self) -> int:
        """Return the number of pixel values in one entry: 1, or C p^2 for patches."""
        return 1 if self.patch_size == 1 else self.shape[0] * self.patch_size**2

    @property
    def vocab_size(self) -> int:
        """Return V, the number of values of an entry."""
        return self.levels**self.digits

    @property
    def grid(self) -> tuple[int, int, int]:
        """Return rows and columns of cells, and entries in each cell, which precede those of the next cell."""
        channels, height, width = self.shape
        p = self.patch_size
        return height // p, width // p, channels if p == 1 else 1

    @property
    def count(self) -> int:
        """Return n, the number of entries of an image."""
        rows, columns, cell = self.grid
        return rows * columns * cell

    @property
    def dims(self) -> int:
        """Return the number of pixel values of an image, which bits per dimension are divided by."""
        return self.count * self.digits

    def encode(self, images: Tensor) -> Tensor:
        """Return the entries (B, n) of images (B, C, H, W) in [-1, 1], rounded to the nearest level."""
        # round to levels
        levels = ((images.float() + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1).long()
        # join the digits of each entry
        digits = self._split(levels)                                                    # (B, n, digits)
        return (digits * self._weights(digits)).sum(-1)

    def decode(self, entries: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1], float32, of entries (B, n)."""
        digits = entries[..., None] // self._weights(entries) % self.levels              # (B, n, digits)
        return self.join(digits.float() * (2 / (self.levels - 1)) - 1)

    def spread(self, values: Tensor) -> Tensor:
        """Return `values` (B, n) of entries at all of their pixels, (B, C, H, W), in the dtype of `values`."""
        return self.join(values[..., None].expand(*values.shape, self.digits))

    def join(self, digits: Tensor) -> Tensor:
        """Return images (B, C, H, W) of the pixel values (B, n, digits) of their entries."""
        channels, height, width = self.shape
        p = self.patch_size
        cells = digits.reshape(-1, height // p, width // p, p, p, channels)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width).contiguous()

    def _split(self, images: Tensor) -> Tensor:
        """Return the pixel values (B, n, digits) of the entries of images (B, C, H, W)."""
        channels, height, width = self.shape
        p = self.patch_size
        cells = images.reshape(-1, channels, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
        return cells.reshape(len(images), self.count, self.digits)

    def _weights(self, like: Tensor) -> Tensor:
        """Return the weight of each digit in an entry, (digits,): L^(digits - 1), ..., L, 1."""
        powers = torch.arange(self.digits - 1, -1, -1, device=like.device)
        return torch.full_like(powers, self.levels) ** powers


@dataclass(frozen=True)
class CodeEntries:
    """The codes of a discrete autoencoder as entries: `size` rows and columns of codes in [0, `vocab_size` - 1]."""

    size: tuple[int, int]
    vocab_size: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Return rows, columns, and entries in each cell: 1."""
        return *self.size, 1

    @property
    def count(self) -> int:
        """Return n, the number of codes of an image."""
        rows, columns = self.size
        return rows * columns

    @property
    def dims(self) -> int:
        """Return the number of codes, which bits per code are divided by."""
        return self.count
