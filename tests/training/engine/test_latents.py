"""Latents kept beside a run: those of the autoencoder, encoded again where files are broken, standard or reported."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen.data import load_dataset
from hfgen.errors import CheckpointError
from hfgen.training.engine import encoded_images
from hfgen.training.engine.encoded_images import weights_hash
from hfgen.training.engine.latents import encoded, load_autoencoder, mean_and_variance
from tests.training.tiny import make_autoencoder


def test_latents_are_those_of_the_autoencoder_mirrored_ones_too(tmp_path: Path, grey: str) -> None:
    source, vae = load_dataset("digits"), load_autoencoder(grey)
    latents = encoded(source, vae, True, tmp_path)
    x = source.tensor(40)
    with torch.no_grad():
        torch.testing.assert_close(latents.tensor(40), vae.to_latents(x), atol=1e-5, rtol=0)
        sides = [vae.posterior(x), vae.posterior(x.flip(-1))]
    shift, scale = vae.config["shift_factor"], vae.config["scaling_factor"]
    batch = next(latents.batches(seed=0, batch_size=len(latents)))
    order = next(source.batches(seed=0, batch_size=len(latents)))
    assert torch.equal(batch["label"], order["label"]) and latents.num_classes == 10
    taken = latents.take(0, torch.zeros(40).long().numpy(), torch.arange(40).numpy(), torch.device("cpu"))
    which = [(taken["x"] - (q.mean - shift) * scale).abs().amax((1, 2, 3)) < 1e-4 for q in sides]
    assert (which[0] | which[1]).all() and 8 < which[1].sum() < 32
    expected = torch.where(which[0][:, None, None, None], sides[0].std, sides[1].std) * scale
    torch.testing.assert_close(taken["std"], expected, atol=1e-5, rtol=0)
    assert latents.describe() == "latents of digits: 1,797 of 2x4x4, 10 classes"


def test_what_is_missing_cut_short_or_flipped_is_encoded_again_and_other_weights_or_images_are_refused(
    tmp_path: Path, grey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded_images, "SHARD", 500)
    source, vae = load_dataset("digits"), load_autoencoder(grey)
    folder = tmp_path / "latents"
    whole = encoded(source, vae, False, folder)
    everything: Any = (0, torch.zeros(1797).long().numpy(), torch.arange(1797).numpy(), torch.device("cpu"))
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 4 and files[0].stat().st_mode & 0o044
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:1000])
    flipped = bytearray(files[3].read_bytes())
    flipped[-1000] ^= 4
    files[3].write_bytes(flipped)
    kept = {0: files[0].stat().st_ino}
    again = encoded(source, vae, False, folder)
    assert {i: files[i].stat().st_ino for i in kept} == kept
    for a, b in zip(again.take(*everything).values(), whole.take(*everything).values(), strict=True):
        assert torch.equal(a, b)
    assert again.fingerprint == whole.fingerprint
    with pytest.raises(CheckpointError, match="holds latents of other images, or of an autoencoder with other weights"):
        encoded(source, vae, True, folder)
    other = load_autoencoder(str(make_autoencoder(tmp_path / "other", 1, seed=1)))
    with pytest.raises(CheckpointError, match="latents-00000000"):
        encoded(source, other, False, folder)


def test_an_autoencoder_is_a_pipeline_a_run_or_a_folder_of_its_own(tmp_path: Path, grey: str) -> None:
    first = load_autoencoder(grey)
    alone = load_autoencoder(str(Path(grey) / "vae"))
    assert weights_hash(first) == weights_hash(alone)
    assert not any(p.requires_grad for p in first.parameters())
    first.register_to_config(scaling_factor=3.0)
    assert weights_hash(first) != weights_hash(alone)


def test_what_is_kept_does_not_depend_on_the_version_of_a_library(
    tmp_path: Path, grey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, vae = load_dataset("digits", split="train[:64]"), load_autoencoder(grey)
    first = encoded(source, vae, False, tmp_path)
    monkeypatch.setattr("diffusers.configuration_utils.__version__", "99.0")
    assert "99.0" in vae.to_json_string()
    assert encoded(source, vae, False, tmp_path).fingerprint == first.fingerprint


def test_latents_that_are_not_of_mean_0_and_variance_1_are_reported_with_their_numbers(
    tmp_path: Path, grey: str
) -> None:
    source, vae = load_dataset("digits"), load_autoencoder(grey)
    shift, scale = vae.config["shift_factor"], vae.config["scaling_factor"]
    vae.register_to_config(shift_factor=shift - 0.5 / scale, scaling_factor=scale)
    with pytest.warns(UserWarning, match=r"digits: the latents have mean 0\.5.. and variance (1\.0|0\.9)"):
        latents = encoded(source, vae, False, tmp_path / "shifted")
    batch = latents.take(0, *2 * (torch.arange(len(latents)).numpy(),), torch.device("cpu"))
    drawn = batch["x"] + batch["std"] * torch.randn(batch["x"].shape)
    found = mean_and_variance(zip(batch["x"].split(100), batch["std"].split(100), strict=True))
    assert found == (pytest.approx(0.5, abs=0.05), pytest.approx(drawn.var().item(), abs=0.03))
    vae.register_to_config(shift_factor=shift, scaling_factor=1.5 * scale)
    with pytest.warns(UserWarning, match=r"have mean -?0\.0.. and variance 2\.[123]"):
        encoded(source, vae, True, tmp_path / "scaled")
