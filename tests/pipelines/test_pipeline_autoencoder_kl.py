"""The pipeline of latent diffusion's autoencoder: latents, reconstructions, a saved folder, checked arguments."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.pipelines.autoencoder_kl import AutoencoderKLPipeline


def pipeline() -> AutoencoderKLPipeline:
    return AutoencoderKLPipeline(AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=(8, 12),
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5, shift_factor=0.1,
    ).eval())  # fmt: skip


def test_latents_are_scaled_and_images_come_back_through_them_in_every_form() -> None:
    pipe, x = pipeline(), torch.rand(5, 3, 8, 12)
    with torch.no_grad():
        mean = pipe.vae.encode(2 * x - 1).latent_dist.mean  # type: ignore[union-attr]
        expected = (pipe.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(pipe.encode(x, batch_size=2), (mean - 0.1) * 0.5, atol=1e-6, rtol=0)
    tensor = pipe.reconstruct(x, batch_size=3, output_type="pt").images  # type: ignore[union-attr]
    torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=0)
    array = pipe(x, output_type="np", return_dict=False)[0]
    torch.testing.assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), expected, atol=1e-5, rtol=0)
    pictures = pipe.reconstruct(Image.new("L", (20, 30))).images  # type: ignore[union-attr]
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (12, 8))]


def test_a_saved_folder_loads_again_and_its_network_in_stock_diffusers(tmp_path: Path) -> None:
    pipe, x = pipeline(), torch.rand(2, 3, 8, 12)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "AutoencoderKLPipeline"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    again = AutoPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode(x), pipe.encode(x))  # type: ignore[attr-defined]
    stock = diffusers.AutoencoderKL.from_pretrained(tmp_path / "saved", subfolder="vae")
    assert stock.config.scaling_factor == 0.5 and stock.config.shift_factor == 0.1


def test_wrong_arguments_are_refused_by_name() -> None:
    pipe = pipeline()
    with pytest.raises(ConfigError, match=r"latents must have shape \(B, 4, h, w\), got \[2, 3, 4, 4\]"):
        pipe.decode(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigTypeError, match=r"latents must be a float tensor \(B, 4, h, w\), got list"):
        pipe.decode([0.0])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size"):
        pipe.encode(torch.rand(1, 3, 8, 12), batch_size=0)
    with pytest.raises(ConfigError, match="output_type"):
        pipe(torch.rand(1, 3, 8, 12), output_type="png")
