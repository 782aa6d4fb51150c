"""What the autoencoder's pipeline makes of images: codes, reconstructions, completed images, and a saved folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import from_pil, to_pil
from hfgen.models.autoencoder import Autoencoder
from hfgen.pipelines.autoencoder import AutoencoderPipeline


def pipeline(channels=1, resolution=8):
    torch.manual_seed(0)
    return AutoencoderPipeline(Autoencoder(resolution, channels, "mlp", (16,), 6).eval())


def picture(i, width=8, height=8):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width), dtype=np.uint8))


def reconstructed(pipe, x):
    with torch.no_grad():
        return pipe.autoencoder(x).sample


def test_reconstructions_are_the_networks_in_every_form():
    pipe, pictures = pipeline(), [picture(i) for i in range(5)]
    expected = reconstructed(pipe, from_pil(pictures))
    tensor = pipe.reconstruct(pictures, output_type="pt", batch_size=2).images
    torch.testing.assert_close(tensor, expected / 2 + 0.5, atol=1e-6, rtol=0)
    array = pipe(pictures, output_type="np").images
    np.testing.assert_allclose(array, (expected / 2 + 0.5).permute(0, 2, 3, 1), atol=1e-6, rtol=0)
    (pils,) = pipe(pictures, return_dict=False)
    assert [image.tobytes() for image in pils] == [image.tobytes() for image in to_pil(expected)]
    assert torch.equal(pipe.denoise(pictures, output_type="pt").images, pipe(pictures, output_type="pt").images)


def test_denoising_takes_tensors_whose_noise_leaves_the_range():
    pipe, x = pipeline(), torch.randn(3, 1, 8, 8)
    expected = reconstructed(pipe, 2 * x - 1) / 2 + 0.5
    torch.testing.assert_close(pipe.denoise(x, output_type="pt").images, expected, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\]"):
        pipe.reconstruct(x)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\]"):
        pipe.denoise(x / 0)


def test_codes_are_the_encoders_and_decode_to_the_reconstruction():
    pipe, x = pipeline(3, (8, 12)), torch.rand(7, 3, 8, 12)
    codes = pipe.encode(x, batch_size=3)
    with torch.no_grad():
        torch.testing.assert_close(codes, pipe.autoencoder.encode(2 * x - 1), atol=1e-6, rtol=0)
    images = pipe.decode(codes, output_type="pt").images
    torch.testing.assert_close(images, pipe.reconstruct(x, output_type="pt").images, atol=1e-6, rtol=0)


def test_completing_keeps_what_is_given_and_never_sees_what_is_missing():
    pipe, x = pipeline(), torch.rand(4, 1, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:6] = True
    done = pipe.complete(x, mask, output_type="pt").images
    torch.testing.assert_close(done[..., ~mask], x[..., ~mask], atol=1e-6, rtol=0)
    expected = reconstructed(pipe, torch.where(mask, 0.0, 2 * x - 1)) / 2 + 0.5
    torch.testing.assert_close(done[..., mask], expected[..., mask], atol=1e-6, rtol=0)
    other = torch.where(mask, torch.rand(4, 1, 8, 8), x)
    assert torch.equal(pipe.complete(other, mask, output_type="pt").images[..., mask], done[..., mask])


def test_masks_come_as_pictures_tensors_and_one_for_each_image():
    pipe, x = pipeline(), torch.rand(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :3], mask[1, :, :, 5:] = 1, 1
    expected = pipe.complete(x, mask, output_type="pt").images
    assert torch.equal(pipe.complete(x, mask.bool(), output_type="pt").images, expected)
    pictures = [Image.fromarray(m[0].numpy().astype(np.uint8) * 255) for m in mask]
    assert torch.equal(pipe.complete(x, pictures, output_type="pt").images, expected)
    one = pipe.complete(x[:1], pictures[0], output_type="pt").images
    torch.testing.assert_close(one, expected[:1], atol=1e-6, rtol=0)
    large = [image.resize((16, 16), Image.Resampling.NEAREST) for image in pictures]
    assert torch.equal(pipe.complete(x, large, output_type="pt").images[0], expected[0])


def test_the_saved_folder_loads_again_by_either_name(tmp_path):
    pipe, x = pipeline(3, (8, 12)), torch.rand(3, 3, 8, 12)
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "AutoencoderPipeline"]
    assert index["autoencoder"] == ["hfgen_shim", "Autoencoder"]
    for loader in (AutoPipeline, AutoencoderPipeline):
        loaded = loader.from_pretrained(tmp_path / "model")
        assert isinstance(loaded, AutoencoderPipeline)
        assert torch.equal(loaded.encode(x), pipe.encode(x))
        assert torch.equal(loaded(x, output_type="pt").images, pipe(x, output_type="pt").images)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe, x: pipe("cat.png"), ConfigTypeError, "images must be PIL images, a float tensor"),
        (lambda pipe, x: pipe([]), ConfigError, "images must hold at least one image"),
        (lambda pipe, x: pipe(x, output_type="jpg"), ConfigError, "output_type must be one of"),
        (lambda pipe, x: pipe(x, batch_size=0), ConfigError, "batch_size must be an int >= 1"),
        (lambda pipe, x: pipe.encode(x, batch_size=0), ConfigError, "batch_size must be an int >= 1"),
        (lambda pipe, x: pipe.complete(x, None), ConfigTypeError, "mask must be PIL images, a float tensor"),
        (lambda pipe, x: pipe.complete(x, torch.ones(3, 1, 8, 8)), ConfigError, "mask must be one for all"),
        (lambda pipe, x: pipe.complete(x, 2 * torch.ones(8, 8)), ConfigError, r"mask must be in \[0, 1\]"),
        (lambda pipe, x: pipe.decode(torch.zeros(2, 7)), ConfigError, r"latents must be \(B, 6\)"),
        (lambda pipe, x: pipe.decode([0.0]), ConfigTypeError, "latents must be a float tensor"),
    ],
)
def test_what_cannot_be_used_is_refused_by_reason(call, error, message):
    with pytest.raises(error, match=message):
        call(pipeline(), torch.rand(2, 1, 8, 8))
