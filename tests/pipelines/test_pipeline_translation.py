"""The translation pipeline: both directions in every form, order and size kept, cycles, and a saved folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline, ResNetTranslator, TranslationPipeline, UNetTranslator
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import from_pil, to_pil


def pipeline(a=3, b=3, net=ResNetTranslator, **sizes):
    sizes = sizes or {"width": 4, "blocks": 1}
    torch.manual_seed(0)
    return TranslationPipeline(net(a, b, **sizes).eval(), net(b, a, **sizes).eval())


def picture(i, width=16, height=12, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(("direction", "other"), [("a2b", "b2a"), ("b2a", "a2b")])
def test_translations_are_the_networks_in_every_form_and_order(direction, other):
    pipe, pictures = pipeline(), [picture(i) for i in range(5)]
    with torch.no_grad():
        expected = pipe.components[f"generator_{direction}"](from_pil(pictures)).sample
        there_and_back = pipe.components[f"generator_{other}"](expected).sample
    unit = expected / 2 + 0.5
    tensor = pipe(pictures, direction, batch_size=2, output_type="pt").images
    torch.testing.assert_close(tensor, unit, atol=1e-6, rtol=0)
    array = pipe(pictures, direction, output_type="np").images
    np.testing.assert_allclose(array, unit.permute(0, 2, 3, 1), atol=1e-6, rtol=0)
    (pils,) = pipe(pictures, direction, return_dict=False)
    assert [image.tobytes() for image in pils] == [image.tobytes() for image in to_pil(expected)]
    assert [image.size for image in pils] == [(16, 12)] * 5
    back = pipe.cycle(pictures, direction, output_type="pt", batch_size=3).images
    torch.testing.assert_close(back, there_and_back / 2 + 0.5, atol=1e-6, rtol=0)


def test_pictures_tensors_and_arrays_are_the_same_images():
    pipe, pictures = pipeline(), [picture(i) for i in range(3)]
    x = from_pil(pictures) / 2 + 0.5
    found = [pipe(given, output_type="pt").images for given in (pictures, x, x.permute(0, 2, 3, 1).numpy())]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=0)
    one = pipe(pictures[1], output_type="pt").images
    torch.testing.assert_close(one, found[0][1:2], atol=1e-6, rtol=0)


def test_domains_may_differ_in_channels_and_pictures_are_brought_to_them():
    pipe = pipeline(1, 3)
    grey = [picture(i, channels=1) for i in range(2)]
    colour = pipe(grey)
    assert [image.mode for image in colour.images] == ["RGB", "RGB"]
    assert pipe(colour.images, "b2a").images[0].mode == "L"
    assert pipe.cycle(grey, output_type="pt").images.shape == (2, 1, 12, 16)
    as_rgb = [image.convert("RGB") for image in grey]
    assert torch.equal(pipe(as_rgb, output_type="pt").images, pipe(grey, output_type="pt").images)


@pytest.mark.parametrize(("net", "sizes"), [(ResNetTranslator, {}), (UNetTranslator, {"width": 4, "depth": 2})])
def test_the_saved_folder_holds_both_directions_and_loads_again_by_either_name(net, sizes, tmp_path):
    pipe, x = pipeline(1, 3, net, **sizes), torch.rand(2, 1, 12, 16)
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "TranslationPipeline"]
    assert index["generator_a2b"] == index["generator_b2a"] == ["hfgen_shim", net.__name__]
    for loader in (AutoPipeline, TranslationPipeline):
        loaded = loader.from_pretrained(tmp_path / "model")
        assert isinstance(loaded, TranslationPipeline)
        for method in ("__call__", "cycle"):
            expected = getattr(pipe, method)(x, output_type="pt").images
            assert torch.equal(getattr(loaded, method)(x, output_type="pt").images, expected)
    half = TranslationPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    torch.testing.assert_close(half(x, output_type="pt").images, pipe(x, output_type="pt").images, atol=0.05, rtol=0)


@pytest.mark.parametrize(("height", "width", "modes"), [
    (16, 32, ("reflect", "reflect")), (12, 20, ("reflect", "reflect")), (4, 28, ("edge", "reflect")),
    (12, 1, ("reflect", "edge")),
])  # fmt: skip
def test_what_a_unet_cannot_halve_gets_a_border_that_is_cut_off_again(height, width, modes):
    pipe, x = pipeline(1, 3, UNetTranslator, width=4, depth=4, norm="layer"), torch.rand(3, 1, height, width)

    def bordered(net, images):
        grown = images.numpy()
        for axis, mode in zip((2, 3), modes, strict=True):
            gap = -images.shape[axis] % 16
            grown = np.pad(grown, [(gap // 2, gap - gap // 2) if i == axis else (0, 0) for i in range(4)], mode)
        top, left = -height % 16 // 2, -width % 16 // 2
        with torch.no_grad():
            return net(torch.from_numpy(grown)).sample[:, :, top : top + height, left : left + width]

    there = bordered(pipe.generator_a2b, 2 * x - 1)
    back = bordered(pipe.generator_b2a, there)
    found = pipe(x, output_type="pt", batch_size=2).images
    torch.testing.assert_close(found, there / 2 + 0.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(pipe.cycle(x, output_type="pt").images, back / 2 + 0.5, atol=1e-5, rtol=0)
    assert [image.size for image in pipe(x).images] == [(width, height)] * 3


@pytest.mark.parametrize(
    ("net", "sizes", "grown"),
    [
        (ResNetTranslator, {"blocks": 1, "downsamplings": 0}, {}),
        (ResNetTranslator, {"blocks": 1, "downsamplings": 1}, {33: 34}),
        (ResNetTranslator, {"blocks": 1, "downsamplings": 2}, {4: 8, 30: 32, 33: 36}),
        (ResNetTranslator, {"blocks": 1, "downsamplings": 3}, {4: 16, 8: 16, 12: 16, 20: 24, 28: 32, 30: 32, 33: 40}),
        (UNetTranslator, {"depth": 2}, {30: 32, 33: 36}),
        (UNetTranslator, {"depth": 3}, {4: 8, 12: 16, 20: 24, 28: 32, 30: 32, 33: 40}),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (12, 20), (20, 12), (28, 4), (30, 33)])
def test_every_size_is_translated_by_all_networks_and_unchanged_where_they_need_no_border(
    net, sizes, grown, height, width
):
    pipe, x = pipeline(1, 3, net, width=4, norm="layer", **sizes), torch.rand(2, 1, height, width)
    images, sides = (2 * x - 1).numpy(), [grown.get(side, side) for side in (height, width)]
    gaps = [side - given for side, given in zip(sides, (height, width), strict=True)]
    for axis, gap in ((3, gaps[1]), (2, gaps[0])):
        border = [(gap // 2, gap - gap // 2) if i == axis else (0, 0) for i in range(4)]
        images = np.pad(images, border, "reflect" if gap - gap // 2 < images.shape[axis] else "edge")
    with torch.no_grad():
        whole = pipe.generator_a2b(torch.from_numpy(images)).sample
    top, left = gaps[0] // 2, gaps[1] // 2
    expected = whole[:, :, top : top + height, left : left + width] / 2 + 0.5
    found = pipe(x, output_type="pt").images
    assert found.shape == (2, 3, height, width)
    torch.testing.assert_close(found, expected, atol=1e-6 if any(gaps) else 0, rtol=0)
    assert pipe.cycle(x, output_type="pt").images.shape == x.shape


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe: pipe("cat.png"), ConfigTypeError, "images must be PIL images, a float tensor"),
        (lambda pipe: pipe([picture(0), "cat.png"]), ConfigTypeError, "got list of .*str"),
        (lambda pipe: pipe(np.zeros((2, 8, 8, 3), np.uint8)), ConfigTypeError, "images must be floats"),
        (lambda pipe: pipe(torch.rand(3, 8, 8)), ConfigError, r"images must be \(B, C, H, W\)"),
        (lambda pipe: pipe(2 * torch.ones(1, 3, 8, 8)), ConfigError, r"images must be in \[0, 1\]"),
        (lambda pipe: pipe([]), ConfigError, "images must hold at least one image"),
        (lambda pipe: pipe([picture(0), picture(1, 16, 16)]), ConfigError,
         "one size in a call: image 0 is 12x16, image 1 is 16x16"),
        (lambda pipe: pipe(picture(0), "b2c"), ConfigError, "direction must be one of a2b, b2a, got 'b2c'"),
        (lambda pipe: pipe.cycle(picture(0), None), ConfigError, "direction must be one of a2b, b2a, got None"),
        (lambda pipe: pipe(picture(0), output_type="jpg"), ConfigError, "output_type must be one of"),
        (lambda pipe: pipe(picture(0), batch_size=0), ConfigError, "batch_size must be an int >= 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_reason(call, error, message):
    with pytest.raises(error, match=message):
        call(pipeline())
