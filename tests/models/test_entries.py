"""Tests of images as entries."""

from typing import Any

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.models.entries import PixelEntries

SHAPES = {
    "grey": ((1, 4, 6), 17, 1), "colour": ((3, 4, 4), 256, 1), "patches": ((1, 4, 6), 2, 2), "rgb": ((3, 2, 4), 2, 2),
}  # fmt: skip


def levels_of(shape: Any, levels: int) -> torch.Tensor:
    return torch.randint(0, levels, (5, *shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SHAPES)
def test_decoding_inverts_encoding(name: str) -> None:
    shape, levels, patch = SHAPES[name]
    entries = PixelEntries(shape, levels, patch)
    images = levels_of(shape, levels) * 2 / (levels - 1) - 1
    codes = entries.encode(images)
    assert codes.shape == (5, entries.count)
    assert codes.dtype == torch.int64
    assert torch.allclose(entries.decode(codes), images, atol=1e-6)


def test_entries_are_in_raster_order_and_the_channels_of_a_pixel_follow_each_other() -> None:
    levels = levels_of((3, 2, 2), 256)
    codes = PixelEntries((3, 2, 2), 256).encode(levels / 127.5 - 1)
    by_hand = [levels[0, c, y, x] for y in range(2) for x in range(2) for c in range(3)]
    assert codes[0].tolist() == [int(value) for value in by_hand]


def test_the_first_pixel_of_a_patch_is_its_most_significant_digit() -> None:
    image = torch.tensor([[[[1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]]]])         # one row of two patches
    assert PixelEntries((1, 2, 4), 2, 2).encode(image).tolist() == [[8, 1]]


def test_pixels_are_rounded_to_the_nearest_of_even_levels() -> None:
    image = torch.tensor([[[[-1.0, -0.51, -0.49, 0.0, 0.49, 0.51, 1.0]]]])
    assert PixelEntries((1, 1, 7), 3).encode(image).tolist() == [[0, 0, 1, 1, 1, 2, 2]]


def test_a_value_of_an_entry_is_spread_over_its_pixels() -> None:
    spread = PixelEntries((2, 2, 4), 2, 2).spread(torch.tensor([[True, False]]))
    assert spread.shape == (1, 2, 2, 4)
    assert spread[..., :2].all()
    assert not spread[..., 2:].any()


@pytest.mark.parametrize(("arguments", "words"), [
    (((1, 5, 4), 2, 2), "must divide the sides"),
    (((3, 4, 4), 256, 2), "at most 65,536 values"),
    (((1, 4, 4), 1, 1), "levels"),
])  # fmt: skip
def test_impossible_entries_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PixelEntries(*arguments)
