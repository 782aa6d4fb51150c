"""Trackers get the settings, the name, the numbers and the sample grids of a run, and a resumed run continues."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training import runs

WORDS = "--save-every 2 --sample-every 2 --preview-images 4 --preview-steps 2 --lr-schedule constant".split()


Train = Callable[..., object]


def trained(folder: Path, tracker: str, train: Train) -> list[dict[str, Any]]:
    """Return the log of a run of two steps that is resumed for two more."""
    train(folder, *WORDS, "--tracker", tracker, "--max-steps", "2")
    train(folder, *WORDS, "--tracker", tracker, "--max-steps", "4", "--resume")
    return runs.metrics(folder)


def wandb_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file of Weights & Biases: 7 bytes, then a log in the format of LevelDB."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):                                               # whole, or the last part
            yield parts
            parts = b""
        if 32768 - position % 32768 < 7:                                 # no header fits into the rest of the block
            position += 32768 - position % 32768


def test_tensorboard_has_all_of_a_resumed_run_once(tmp_path: Path, train: Train) -> None:
    pytest.importorskip("tensorboard", reason="the tracker is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = trained(tmp_path / "mine", "tensorboard", train)
    events = EventAccumulator(str(tmp_path / "mine" / "hfgen")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == [(x["step"], x["loss"]) for x in log]
    assert [image.step for image in events.Images("samples")] == [2, 4]
    assert events.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")
    settings = list((tmp_path / "mine" / "hfgen").rglob("hparams.yml"))
    assert len(settings) == 1 and "batch_size: 16" in settings[0].read_text()


def test_trackio_has_all_of_a_resumed_run_under_one_name(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="the tracker is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    log = trained(tmp_path / "mine", "trackio", train)
    name = f"mine-{json.loads((tmp_path / 'mine' / 'tracker.json').read_text())['id']}"
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        f"print(json.dumps([S.get_runs('hfgen'), S.get_logs('hfgen', {name!r}), S.get_run_config('hfgen', {name!r})]))"
    )
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    names, rows, config = json.loads(done.stdout.splitlines()[-1])
    assert names == [name]
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in log]
    assert [row["step"] for row in rows if "samples" in row] == [2, 4]
    assert config["batch_size"] == 16 and config["dataset"] == "digits"


def test_wandb_has_all_of_a_resumed_run_under_one_id(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the tracker is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = trained(tmp_path / "mine", "wandb", train)
    run_id = json.loads((tmp_path / "mine" / "tracker.json").read_text())["id"]
    files = (tmp_path / "mine" / "wandb").rglob(f"run-{run_id}.wandb")
    names, losses, pictures = set(), [], []
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        for data in wandb_records(file):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                names.add((record.run.display_name, record.run.project))
            if record.WhichOneof("record_type") != "history":
                continue
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "loss" in row:
                losses.append((row["_step"], row["loss"]))
            if "samples" in row:
                pictures.append(row["_step"])
    assert names == {("mine", "hfgen")}
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in log]
    assert pictures == [2, 4]
