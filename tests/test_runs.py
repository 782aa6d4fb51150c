"""Run folders, read in one place, and the hashes of their files and weights."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from hfgen import runs
from hfgen.errors import ConfigError
from hfgen.loading import checkpoint
from hfgen.loading.hashing import hash_of_file, hash_of_tensors, hash_of_weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in (runs.MODEL, runs.GRIDS):
        (folder / name).mkdir(parents=True)
    (folder / "config.yaml").write_text("dataset: digits\nbatch_size: 64\nbudget:\n", encoding="utf-8")
    return folder


def test_a_run_is_found_from_its_folder_and_from_its_model_alone(run: Path, monkeypatch) -> None:
    assert runs.find(run) == runs.find(str(run / "model")) == run
    for other in (run / "samples", run.parent, run / "config.yaml", run / "missing" / "model", "owner/name"):
        assert runs.find(other) is None
    monkeypatch.chdir(run)
    assert runs.find("model") == runs.find(".") == run


def test_settings_record_evaluation_and_numbers_are_read_and_may_be_missing_except_settings(run: Path) -> None:
    assert runs.settings(run) == {"dataset": "digits", "batch_size": 64, "budget": None}
    assert runs.record(run) == runs.evaluation(run) == {} and runs.metrics(run) == []
    for name, content in (("run.json", {"step": 3}), ("evaluation.json", {"metrics": {}})):
        (run / name).write_text(json.dumps(content), encoding="utf-8")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "l', "utf-8")
    assert runs.record(run) == {"step": 3} and runs.evaluation(run) == {"metrics": {}}
    assert runs.metrics(run) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


@pytest.mark.parametrize("text", ["", "- a list", "a: {nested: 1}", "a b: 1", "a: [", "\x00"])
def test_settings_of_another_form_are_refused_with_their_path(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: (cannot be read|must hold)"):
        runs.settings(run)


@pytest.mark.parametrize("line", ["[1]", '{"loss": 1}', "no JSON", '{"step": null}'])
def test_a_complete_line_of_another_form_is_refused_with_its_path(run: Path, line: str) -> None:
    (run / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: each line must be a JSON object with a step"):
        runs.metrics(run)


def test_the_newest_grid_is_that_of_the_latest_step_and_other_pictures_are_passed_over(run: Path) -> None:
    assert runs.newest_grid(run) is None
    for name in ("step-00000100.png", "step-00000020.png", "zebra.png"):
        (run / "samples" / name).touch()
    assert runs.newest_grid(run) == run / "samples" / "step-00000100.png"


def test_the_newest_checkpoint_is_one_that_verifies(run: Path) -> None:
    assert runs.newest_checkpoint(run) is None
    for step in (5, 10):
        checkpoint.save(run / "checkpoints", step, lambda folder: (folder / "file").touch() or None, {})
    assert runs.newest_checkpoint(run) == run / "checkpoints" / "step-00000010"
    (run / "checkpoints" / "step-00000010" / "file").write_text("changed")
    with pytest.warns(checkpoint.CheckpointWarning, match="step-00000010"):
        assert runs.newest_checkpoint(run) == run / "checkpoints" / "step-00000005"


def test_the_hash_of_a_file_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 10**6)
    assert hash_of_file(tmp_path / "file") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_the_hash_of_tensors_covers_names_dtypes_shapes_and_bytes_whatever_their_order() -> None:
    zeros = torch.zeros(4)
    hashes = [
        hash_of_tensors(tensors)
        for tensors in ({"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()}, {"a": zeros + 1}, {})
    ]
    assert len(set(hashes)) == len(hashes) and hash_of_tensors({"a": zeros}, "text") not in hashes
    assert hash_of_tensors({"a": zeros, "b": zeros}) == hash_of_tensors({"b": zeros, "a": zeros})
    assert hash_of_tensors({"a": torch.zeros(2, 4)[:, ::2]}) == hash_of_tensors({"a": torch.zeros(2, 2)})
    net = torch.nn.BatchNorm1d(3)
    before = hash_of_weights(net)
    net.running_mean.add_(1)
    assert hash_of_weights(net) != before


def test_hashes_that_caches_hold_on_disk_stay_the_same() -> None:
    tensors = {"weight": torch.arange(6, dtype=torch.float32).view(2, 3), "empty": torch.zeros(0)}
    expected = hashlib.sha256(b"facts")
    expected.update(b"empty torch.float32 (0,)\nweight torch.float32 (2, 3)\n")
    expected.update(tensors["weight"].numpy().tobytes())
    assert hash_of_tensors(tensors, "facts") == expected.hexdigest()
