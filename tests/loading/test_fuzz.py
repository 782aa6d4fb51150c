"""Model folders with faults that somebody made: each loads, or is refused with an error of hfgen, in bounded time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hfgen
from hfgen import AutoPipeline
from hfgen.errors import CheckpointError, ConfigError, ConfigTypeError, HfgenError, UnsafeContentError
from tests.hub.models import FAMILIES, make
from tests.loading.fuzz import run

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            make(family).save_pretrained(root / family)
        return root / family

    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_with_a_random_fault_loads_or_is_refused(family: str, saved: Callable[[str], Path]) -> None:
    counts, undocumented = run(saved(family), family, range(6))
    assert not undocumented, "\n".join(undocumented)
    assert sum(counts.values()) == 6 > counts["loaded"]


@pytest.mark.soak
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_thousands_of_folders_with_a_random_fault_load_or_are_refused(
    family: str, saved: Callable[[str], Path]
) -> None:
    counts, undocumented = run(saved(family), family, range(1000, 1000 + 100_000 // len(FAMILIES)))
    assert not undocumented, "\n".join(undocumented)
    assert {"loaded", "ConfigError", "CheckpointError"} <= counts.keys()


SCHEDULER, TEXT = "scheduler/scheduler_config.json", "text_encoder/config.json"


@pytest.mark.parametrize(("family", "file", "change", "words"), [
    ("ddpm", SCHEDULER, {"clip_sample_range": 1e308}, "'clip_sample_range' must be at most"),
    ("ddpm", "unet/config.json", {"sample_size": 8000}, r"'sample_size' must be in \[0, 4096\]"),
    ("latent-diffusion-text", TEXT, {"eos_token_id": None}, "'eos_token_id' must be an int"),
    ("latent-diffusion-text", TEXT, {"initializer_factor": -1}, "initializer_factor"),
    ("latent-diffusion-text", TEXT, {"attention_dropout": 10**400}, "'attention_dropout' must be finite"),
    ("latent-diffusion-text", "tokenizer/tokenizer_config.json", {"model_max_length": 500}, "500 positions for texts"),
    ("latent-diffusion-text", "tokenizer/tokenizer_config.json", {"pad_token": []}, "'pad_token' must be a token"),
    ("latent-diffusion-text", "tokenizer/tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": [7]}}, "'merges'"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(
    family: str, file: str, change: dict[str, Any], words: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    make(family).save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=words):
        AutoPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", [["pipeline", []], [[], []], ["pipeline", {}], [], {}, 7, None, ["diffusers", "x"]])
def test_a_name_of_a_class_that_is_none_is_refused(name: Any, tmp_path: Path) -> None:
    make("vae").save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))
    with pytest.raises((ConfigError, UnsafeContentError), match="'_class_name'"):
        AutoPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    (lambda value: value.to(torch.int64), "numbers of another kind: "),
    (lambda value: value.to(torch.bool), "numbers of another kind: "),
    (lambda value: value.to(torch.complex64), "numbers of another kind: "),
    (lambda value: value * float("nan"), "weights that are NaN or infinite: "),
    (lambda value: value / 0, "weights that are NaN or infinite: "),
])  # fmt: skip
def test_weights_that_are_no_finite_floats_are_refused_by_name(
    change: Callable[[torch.Tensor], torch.Tensor], words: str, tmp_path: Path
) -> None:
    make("gan").save_pretrained(tmp_path)
    path = tmp_path / "generator/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = sorted(key for key in tensors if key.endswith("weight"))[0]
    save_file({**tensors, name: change(tensors[name])}, path)
    with pytest.raises(CheckpointError, match=f"{words}.*{name}"):
        AutoPipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{words}.*{name}"):
        hfgen.DCGANGenerator.from_pretrained(tmp_path / "generator")


@pytest.mark.parametrize("place", [None, 3, [], b"x", True])
@pytest.mark.parametrize("cls", ["AutoPipeline", "DDPMPipeline", "UNet", "DDPMScheduler"])
def test_a_model_that_is_no_name_is_refused(cls: str, place: Any) -> None:
    with pytest.raises(ConfigTypeError, match="model must be a folder, a run or a Hub id, got"):
        getattr(hfgen, cls).from_pretrained(place)


@pytest.mark.parametrize("place", ["a" * 5000, "~nosuchuser", "", "a\0b"])
def test_a_name_that_cannot_be_one_is_refused(place: str) -> None:
    with pytest.raises(HfgenError, match="cannot be a folder"):
        AutoPipeline.from_pretrained(place)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    make("ddpm").save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="is a file; a model is a folder"):
        AutoPipeline.from_pretrained(tmp_path / "model/model_index.json")
