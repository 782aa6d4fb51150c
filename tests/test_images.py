"""Pictures in and out of tensors."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import images
from hfgen.errors import ConfigError


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pictures_survive_the_round_trip_bit_for_bit(channels: int, mode: str) -> None:
    pixels = torch.randint(0, 256, (3, channels, 4, 6), dtype=torch.uint8)
    pictures = images.to_pil(images.from_integers(pixels))
    assert [p.mode for p in pictures] == [mode] * 3 and pictures[0].size == (6, 4)
    assert torch.equal(images.to_uint8(images.from_pil(pictures)), pixels)


def test_every_8_bit_and_16_bit_value_maps_linearly_to_minus_one_to_one() -> None:
    for top, values in ((255, torch.arange(256)), (65535, torch.arange(65536))):
        expected = values.double() * 2 / top - 1
        torch.testing.assert_close(images.from_integers(values, top).double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(images.to_uint8(images.from_integers(torch.arange(256))), torch.arange(256).to(torch.uint8))


def test_values_outside_are_clipped_and_nan_is_black() -> None:
    assert images.to_uint8(torch.tensor([-3.0, 3.0, float("nan"), 0.0])).tolist() == [0, 255, 0, 128]


def test_outputs_have_the_ranges_and_layouts_of_diffusers() -> None:
    x = torch.randn(2, 3, 4, 5)
    array, tensor = images.as_output(x, "np"), images.as_output(x, "pt")
    assert array.shape == (2, 4, 5, 3) and array.dtype == np.float32 and tensor.shape == (2, 3, 4, 5)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(tensor, ((x + 1) / 2).clamp(0, 1))
    with pytest.raises(ConfigError, match="output_type must be one of pil, np, numpy, pt, got 'jpg'"):
        images.as_output(x, "jpg")


def test_a_grid_shows_every_picture_at_its_place_enlarged_by_a_whole_factor() -> None:
    pictures = [Image.new("L", (8, 8), value) for value in (10, 20, 30, 40, 50)]
    sheet = images.grid(pictures, columns=3, padding=2)
    assert sheet.size == (3 * 34 + 2, 2 * 34 + 2)
    found = [sheet.getpixel((2 + 16 + 34 * (i % 3), 2 + 16 + 34 * (i // 3))) for i in range(5)]
    assert found == [10, 20, 30, 40, 50]


def test_a_scatter_plot_has_dark_pixels_where_the_points_are_with_y_upwards() -> None:
    points = torch.tensor([[0.9, 0.9], [-0.9, -0.9], [5.0, 5.0]])
    picture = np.asarray(images.scatter(points, -1, 1, side=20))
    assert picture.shape == (20, 20, 3)
    assert np.argwhere(picture.min(2) < 255).tolist() == [[1, 18], [18, 1]]
    assert picture[1, 18].max() == 0


def test_points_behind_the_others_are_orange_and_hidden_where_they_meet() -> None:
    points, behind = torch.tensor([[0.9, 0.9]]), torch.tensor([[0.9, 0.9], [-0.9, -0.9]])
    picture = np.asarray(images.scatter(points, -1, 1, side=20, behind=behind)).astype(int)
    assert picture[1, 18].max() == 0
    red, green, blue = picture[18, 1]
    assert red == 255 and green == 153 and blue == 0
