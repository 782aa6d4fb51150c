"""From encoded images to arrays: modes, alpha, bit depth, size."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from hfgen.data.decode import Layout, decode, read_header

WHITE = (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, channels: int = 3, size=None, background=WHITE, deep=False) -> np.ndarray:
    header = read_header(data, background)
    height, width = size or (header.height, header.width)
    return decode(data, Layout(channels, height, width, background, deep))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_grey_and_colour_come_through_exactly():
    grey, colour = noise(5, 7), noise(5, 7, 3)
    assert np.array_equal(decoded(encode(Image.fromarray(grey)), 1)[0], grey)
    assert np.array_equal(decoded(encode(Image.fromarray(grey)), 3), np.stack([grey] * 3))
    assert np.array_equal(decoded(encode(Image.fromarray(colour)), 3), colour.transpose(2, 0, 1))


def test_bits_become_black_and_white_and_palettes_their_colours():
    bits = noise(4, 4) > 127
    assert np.array_equal(decoded(encode(Image.fromarray(bits)), 1)[0], bits * 255)
    palette = Image.fromarray(noise(4, 4) % 3).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    assert np.array_equal(decoded(encode(palette)), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))


def test_cmyk_becomes_rgb():
    ink = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red = decoded(encode(ink, "TIFF"))
    assert (red[0] > 250).all() and (red[1:] < 5).all()


def test_alpha_is_composited_over_the_background_exactly():
    rgba, background = noise(16, 16, 4), (10, 200, 77)
    a = rgba[..., 3:].astype(float) / 255
    exact = np.round(a * rgba[..., :3] + (1 - a) * np.array(background)).transpose(2, 0, 1)
    assert np.array_equal(decoded(encode(Image.fromarray(rgba)), background=background), exact)


def test_grey_with_alpha_stays_grey_only_over_a_grey_background():
    la = encode(Image.merge("LA", [Image.new("L", (4, 4), 30)] * 2))
    assert read_header(la, WHITE).grey and not read_header(la, (255, 0, 0)).grey
    assert (decoded(la, 1) == round(30 / 255 * 30 + 225 / 255 * 255)).all()


def test_a_transparent_palette_entry_shows_the_background():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    data = encode(palette, transparency=1)
    assert decoded(data, background=(1, 2, 3))[:, 0].T.tolist() == [[255, 0, 0], [1, 2, 3]]


def test_four_channels_keep_alpha_and_opaque_images_get_a_full_one():
    rgba = noise(4, 4, 4)
    assert np.array_equal(decoded(encode(Image.fromarray(rgba)), 4), rgba.transpose(2, 0, 1))
    assert (decoded(encode(Image.fromarray(noise(4, 4))), 4)[3] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation_is_applied_and_the_header_knows_the_size(kind, orientation):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255                                                               # bright on the right
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(pixels), kind, exif=exif)
    upright = np.rot90(pixels, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    header = read_header(data, WHITE)
    assert (header.height, header.width) == upright.shape
    assert np.abs(decoded(data, 1)[0].astype(int) - upright).max() < 30


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(data, 1) == 10).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_16_bit_ramp_keeps_every_level(kind):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = encode(Image.fromarray(ramp), kind)
    header = read_header(data, WHITE)
    assert header.deep and header.grey
    assert np.array_equal(decoded(data, 1, deep=True)[0], ramp)
    assert np.array_equal(decoded(data, 3, deep=True), np.stack([ramp] * 3))


def test_8_bit_images_among_16_bit_ones_keep_black_and_white():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decoded(encode(Image.fromarray(ramp)), 1, deep=True)[0], ramp.astype(np.uint16) * 257)


def test_a_float_tiff_in_the_unit_interval_is_rescaled_to_16_bits():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    array = decoded(encode(Image.fromarray(ramp), "TIFF"), 1, deep=True)[0]
    assert np.abs(array / 65535 - ramp).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_tiff_whose_tags_document_its_range_is_rescaled_by_them(dtype):
    ramp = np.linspace(-500, 1500, 64).reshape(8, 8).astype(dtype)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[340], tags[341] = -500.0, 1500.0
    tags.tagtype[340] = tags.tagtype[341] = 12                                        # double
    array = decoded(encode(Image.fromarray(ramp), "TIFF", tiffinfo=tags), 1, deep=True)[0]
    assert np.abs(array / 65535 * 2000 - 500 - ramp).max() < 0.02


@pytest.mark.parametrize("values", [np.array([[0, 300]], np.float32), np.array([[0, np.nan]], np.float32),
                                    np.array([[0, 1]], np.int32)])
def test_a_tiff_of_unknown_range_is_refused(values):
    with pytest.raises(ValueError, match="no known range"):
        decoded(encode(Image.fromarray(values), "TIFF"), 1, deep=True)


def test_resizing_keeps_the_centre_of_the_larger_side():
    wide = noise(10, 30)
    halved = np.asarray(Image.fromarray(wide).resize((15, 5), Image.Resampling.BICUBIC))
    assert np.array_equal(decoded(encode(Image.fromarray(wide)), 1, (5, 5))[0], halved[:, 5:10])
    assert np.array_equal(decoded(encode(Image.fromarray(wide)), 1, (10, 10))[0], wide[:, 10:20])
    assert np.array_equal(decoded(encode(Image.fromarray(wide)), 1, (10, 20))[0], wide[:, 5:25])


def test_downsizing_is_antialiased():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = decoded(encode(Image.fromarray(checks)), 1, (8, 8)).astype(int)
    assert np.abs(small - 127.5).max() < 12                                           # sampling points gives 0 or 255


def test_downsizing_a_square_is_pillows_bicubic():
    image = Image.fromarray(noise(40, 40, 3))
    theirs = np.asarray(image.resize((13, 13), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(decoded(encode(image), 3, (13, 13)), theirs)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 5)])
def test_tiny_and_thin_images_fill_the_size(size):
    image = Image.new("L", size, 77)
    assert (decoded(encode(image), 1, (16, 16)) == 77).all()
