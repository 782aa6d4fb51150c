"""The pipeline of the discrete autoencoder: codes, reconstructions, a saved folder, checked arguments."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline, VQAutoencoder, VQAutoencoderPipeline
from hfgen.errors import ConfigError, ConfigTypeError

SMALL: dict[str, Any] = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": (8, 12), "num_vq_embeddings": 10,
}  # fmt: skip


def pipeline(**changes: Any) -> Any:
    return VQAutoencoderPipeline(VQAutoencoder(**{**SMALL, **changes}).eval())


def test_codes_are_ints_and_images_come_back_through_them_in_every_form() -> None:
    pipe, x = pipeline(), torch.rand(5, 3, 8, 12)
    with torch.no_grad():
        passed = pipe.autoencoder(2 * x - 1)
    expected = (passed.sample / 2 + 0.5).clamp(0, 1)
    codes = pipe.encode(x, batch_size=2)
    assert torch.equal(codes, passed.codes) and codes.shape == (5, 4, 6) and codes.dtype == torch.int64
    torch.testing.assert_close(pipe.decode(codes, output_type="pt").images, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipe.reconstruct(x, batch_size=3, output_type="pt").images, expected, atol=1e-5, rtol=0)
    array = pipe(x, output_type="np", return_dict=False)[0]
    torch.testing.assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), expected, atol=1e-5, rtol=0)
    assert torch.equal(pipe(x, output_type="latent").images, codes)
    pictures = pipe.reconstruct(Image.new("L", (20, 30))).images
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (12, 8))]


@pytest.mark.parametrize("changes", [{}, {"quantizer": "fsq", "levels": (5, 3)}], ids=["vq", "fsq"])
def test_a_saved_folder_loads_again_and_the_network_with_a_codebook_in_diffusers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    pipe, x = pipeline(**changes), torch.rand(2, 3, 8, 12)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "VQAutoencoderPipeline"]
    again: Any = AutoPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode(x), pipe.encode(x))
    if changes:
        assert index["autoencoder"] == ["hfgen_shim", "VQAutoencoder"]
        return
    assert index["autoencoder"] == ["diffusers", "VQModel"]
    stock = diffusers.VQModel.from_pretrained(tmp_path / "saved", subfolder="autoencoder")
    with torch.no_grad():
        expected = pipe.autoencoder(2 * x - 1).sample
        torch.testing.assert_close(stock(2 * x - 1).sample, expected, atol=1e-5, rtol=0)


def test_wrong_arguments_are_refused_by_name() -> None:
    pipe = pipeline()
    with pytest.raises(ConfigTypeError, match=r"codes must be a tensor \(B, h, w\) of ints, got torch.float32"):
        pipe.decode(torch.zeros(2, 4, 6))
    with pytest.raises(ConfigTypeError, match=r"codes must be a tensor \(B, h, w\) of ints, got list"):
        pipe.decode([0])
    with pytest.raises(ConfigError, match=r"codes must have shape \(B, h, w\), got \[2, 24\]"):
        pipe.decode(torch.zeros(2, 24, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"codes must be in \[0, 9\], got 0 to 10"):
        pipe.decode(torch.arange(11)[None, None])
    with pytest.raises(ConfigError, match="batch_size"):
        pipe.encode(torch.rand(1, 3, 8, 12), batch_size=0)
    with pytest.raises(ConfigError, match="output_type"):
        pipe(torch.rand(1, 3, 8, 12), output_type="png")
