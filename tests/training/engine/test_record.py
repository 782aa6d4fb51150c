"""run.json: what a run writes down of itself for the card of its model."""

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import hfgen
from hfgen.data import load_dataset
from hfgen.loading import checkpoint
from hfgen.training.engine import record
from tests.training.runs import train_here


def train(folder: Path, *extra: str) -> dict[str, Any]:
    """Run the tiny DDPM in this process and return its run.json."""
    train_here("ddpm", folder, "--lr-schedule", "constant", *extra)
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(folder, "--max-steps", "2")
    return folder


def test_a_run_writes_down_what_its_settings_do_not_say(run: Path) -> None:
    found, data = json.loads((run / "run.json").read_text()), load_dataset("digits")
    model = hfgen.DDPMPipeline.from_pretrained(run)
    assert found["recipe"] == "ddpm" and found["step"] == 2 and found["hub"] == [] and found["evaluated"] == []
    assert found["parameters"] == {"unet": sum(p.numel() for p in model.unet.parameters())}
    assert found["data"] == {
        "items": len(data), "shape": [1, 8, 8], "classes": 10, "class_names": data.class_names,
        "fingerprint": data.fingerprint,
    }  # fmt: skip
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["python"] == platform.python_version()
    assert {key: found["hardware"][key] for key in ("device", "processes", "threads")} == {
        "device": "cpu", "processes": 1, "threads": 1,
    }  # fmt: skip
    changed = "output_dir batch_size max_steps learning_rate lr_schedule warmup_steps threads sample_every log_every "
    changed += "block_out_channels layers_per_block num_train_timesteps"
    assert set(changed.split()) <= set(found["changed"])
    assert not {"seed", "dataset", "split", "flip", "resume", "budget", "class_conditional"} & set(found["changed"])
    assert str(run.parent) not in json.dumps({**found, "changed": []}) and platform.node() not in found.values()


def test_the_seconds_of_all_sessions_are_counted_and_unknown_where_one_did_not_count(run: Path, tmp_path: Path) -> None:
    first = json.loads((run / "run.json").read_text())["seconds"]
    stored = run / "checkpoints" / "step-00000002"
    state = json.loads((stored / "state.json").read_text())
    assert 0 <= first == round(state["seconds"], 1)

    def resumed_after(seconds: float | None) -> Any:
        folder = tmp_path / str(seconds)

        def write(copy: Path) -> None:
            shutil.copytree(stored, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(checkpoint.MANIFEST))
            (copy / "state.json").write_text(json.dumps({**state, "seconds": seconds}))

        checkpoint.save(folder / "checkpoints", 2, write, {})
        shutil.copy(run / "config.yaml", folder)
        return train(folder, "--max-steps", "3", "--resume")["seconds"]

    assert 1000 <= resumed_after(1000.0) < 1000 + 60                     # this one step may round to 0.0 s
    assert resumed_after(None) is None


def test_what_is_on_the_hub_is_told_from_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics/cats").mkdir(parents=True)
    on_hub = {name: record._on_hub(name) for name in ("owner/name", "owner/name:small", "mnist", "digits", "shapes:a",
                                                     "pics/cats", "pics/*.png", "a/b/c", "", None)}  # fmt: skip
    assert [name for name, found in on_hub.items() if found] == ["owner/name", "owner/name:small"]
