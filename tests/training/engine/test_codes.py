"""Codes kept beside a run: those of the autoencoder, mirrored ones too, encoded again or refused as latents are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hfgen import VQAutoencoder, VQAutoencoderPipeline
from hfgen.data import load_dataset
from hfgen.errors import CheckpointError, ConfigError
from hfgen.training.codes import open_codes
from hfgen.training.engine import encoded_images
from hfgen.training.engine.codes import Codes, encoded, load_autoencoder, of_shape
from hfgen.training.settings.denoiser import ConditionSettings
from tests.training.tiny import make_autoencoder, make_vq_autoencoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_vq_autoencoder(tmp_path_factory.mktemp("vq") / "model"))


def take(codes: Codes, n: int, seed: int = 0) -> dict[str, Any]:
    return codes.take(seed, np.zeros(n, np.int64), np.arange(n), torch.device("cpu"))


def test_codes_are_those_of_the_autoencoder_mirrored_ones_too(tmp_path: Path, model: str) -> None:
    source, net = load_dataset("digits"), load_autoencoder(model)
    codes = encoded(source, net, True, tmp_path)
    x = source.tensor(40)
    sides = [net.to_codes(x).flatten(1), net.to_codes(x.flip(-1)).flatten(1)]
    assert torch.equal(codes.tensor(40), sides[0]) and len(sides[0].unique()) > 8
    batch = next(codes.batches(seed=0, batch_size=64))
    order = next(source.batches(seed=0, batch_size=64))
    assert torch.equal(batch["label"], order["label"]) and codes.num_classes == 10
    assert batch["codes"].shape == (64, 16) and batch["codes"].dtype == torch.int64
    taken = take(codes, 40)["codes"]
    which = [(taken == side).all(1) for side in sides]
    assert (which[0] | which[1]).all() and 8 < which[1].sum() < 32
    assert codes.describe() == "codes of digits: 1,797 of 1x4x4, 10 classes"
    assert (codes.num_codes, codes.grid, codes.shape) == (net.num_codes, (4, 4), (1, 4, 4))
    assert torch.equal(net.from_codes(codes.tensor(3).view(-1, *codes.grid)), net(x[:3]).sample)


def test_missing_cut_or_flipped_files_are_encoded_again_and_other_weights_or_images_are_refused(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded_images, "SHARD", 500)
    source, net = load_dataset("digits"), load_autoencoder(model)
    folder = tmp_path / "codes"
    whole = encoded(source, net, False, folder)
    files = sorted(folder.glob("codes-*.safetensors"))
    assert len(files) == 4
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:1000])
    flipped = bytearray(files[3].read_bytes())
    flipped[-1000] ^= 4
    files[3].write_bytes(flipped)
    kept = files[0].stat().st_ino
    again = encoded(source, net, False, folder)
    assert files[0].stat().st_ino == kept and torch.equal(again.tensor(), whole.tensor())
    assert again.fingerprint == whole.fingerprint
    with pytest.raises(CheckpointError, match="holds codes of other images, or of an autoencoder with other weights"):
        encoded(source, net, True, folder)
    other = load_autoencoder(str(make_vq_autoencoder(tmp_path / "other", seed=1)))
    with pytest.raises(CheckpointError, match="codes-00000000"):
        encoded(source, other, False, folder)


@pytest.mark.parametrize("changes", [{}, {"quantizer": "fsq", "levels": (4, 3)}], ids=["vq", "fsq"])
def test_an_autoencoder_is_a_pipeline_or_a_folder_of_its_own_or_one_of_diffusers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_vq_autoencoder(tmp_path / "model", **changes)
    x = load_dataset("digits").tensor(20)
    for name in (folder, folder / "autoencoder"):
        net = load_autoencoder(str(name))
        assert type(net) is VQAutoencoder and not any(p.requires_grad for p in net.parameters())
        assert torch.equal(net.to_codes(x), VQAutoencoder.from_pretrained(folder).to_codes(x))


def test_an_autoencoder_without_codes_is_refused(tmp_path: Path) -> None:
    folder = make_autoencoder(tmp_path / "kl", 1)
    with pytest.raises(ConfigError, match=r"holds no autoencoder; it holds .*vae"):
        load_autoencoder(str(folder))
    with pytest.raises(ConfigError, match="'_class_name' is 'AutoencoderKL'; expected 'VQAutoencoder' or 'VQModel'"):
        load_autoencoder(str(folder / "vae"))


def settings(folder: Path, model: str, **changes: Any) -> Any:
    given = ConditionSettings(output_dir=folder, **changes)
    return SimpleNamespace(**vars(given), autoencoder=model)


def test_codes_are_opened_as_settings_say_after_the_networks_were_tried_out(tmp_path: Path, model: str) -> None:
    tried = []
    s = settings(tmp_path, model, dataset="digits", split="train[:100]", class_conditional=True)
    codes = open_codes(s, tried.append)
    assert len(codes) == 100 and codes.fingerprint == open_codes(s, tried.append).fingerprint
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == ["codes-00000000.safetensors"]
    assert tried[0].shape == codes.shape and tried[0].num_codes == codes.num_codes and len(tried[0]) == 100
    batch = next(tried[0].batches(seed=0, batch_size=8))
    assert batch["codes"].shape == (8, 16) and batch["codes"].eq(0).all() and "label" in batch

    def fails(codes: Codes) -> None:
        raise ConfigError("too deep")

    with pytest.raises(ConfigError, match="too deep"):
        open_codes(settings(tmp_path / "new", model), fails)
    assert not (tmp_path / "new").exists()                                              # nothing was encoded


def test_captions_come_along(tmp_path: Path) -> None:
    model = make_vq_autoencoder(tmp_path / "model", in_channels=3, out_channels=3)
    s = settings(tmp_path, str(model), dataset="shapes", split="train[:20]", resolution=8, captions=True)
    batch = take(open_codes(s, lambda codes: None), 4)
    assert batch["codes"].shape == (4, 16) and all("on" in text for text in batch["caption"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"dataset": "ring8"}, "--dataset ring8: autoregression of codes is for images, these are points"),
    ({"dataset": "shapes", "resolution": 8}, "--autoencoder .* is for 1 channels, the images of shapes have 3"),
])  # fmt: skip
def test_data_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path, model: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_codes(settings(tmp_path, model, **changes), lambda codes: None)


def test_codes_of_the_right_shape_need_no_memory(model: str) -> None:
    codes = of_shape(load_dataset("digits"), load_autoencoder(model))
    assert codes._tensors["codes"].untyped_storage().nbytes() == 4 and codes.tensor().shape == (1797, 16)


def test_a_pipeline_in_memory_is_an_autoencoder_too(model: str) -> None:
    from hfgen.loading.given import named

    pipe = VQAutoencoderPipeline.from_pretrained(model)
    with named({"autoencoder": pipe}) as names:
        assert torch.equal(
            load_autoencoder(names["autoencoder"]).quantize.embedding.weight,  # type: ignore[union-attr,arg-type]
            pipe.autoencoder.quantize.embedding.weight,
        )
