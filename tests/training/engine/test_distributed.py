"""Surroundings of a run: the precision that a launcher asks for, and the package of a tracker."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hfgen.training.ddpm import RECIPE
from hfgen.training.engine import distributed
from hfgen.training.engine.distributed import LAUNCHED_PRECISION
from hfgen.training.engine.run import main
from tests.training.runs import ROOT, assert_same_run, command, environment

Train = Callable[..., object]

LAUNCHER = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1, "num_machines": 1}


def test_the_precision_of_accelerates_configuration_is_adopted_said_and_written_down(
    tmp_path: Path, train: Train
) -> None:
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump({**LAUNCHER, "mixed_precision": "bf16", "use_cpu": True}))
    python, *words = command(tmp_path / "launched", "--max-steps", "3")
    launch = [python, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "accelerate.yaml")]
    done = subprocess.run([*launch, *words], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "precision bf16, as accelerate asks" in done.stdout, done.stderr
    assert yaml.safe_load((tmp_path / "launched" / "config.yaml").read_text())["mixed_precision"] == "bf16"
    train(tmp_path / "told", "--max-steps", "3", "--mixed-precision", "bf16")
    assert_same_run(tmp_path / "launched", tmp_path / "told")


def test_a_precision_that_cannot_be_adopted_is_refused_unless_the_recipes_own_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LAUNCHED_PRECISION, "fp8")
    assert main(RECIPE, ["--output-dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "'fp8'; hfgen trains in bf16, fp16 or no" in told and not (tmp_path / "run").exists()
    words = ["--output-dir", str(tmp_path / "run"), "--mixed-precision", "no", "--dataset", "./missing"]
    assert main(RECIPE, words) == 65


@pytest.mark.parametrize("missing", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_without_its_package_ends_the_run_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    monkeypatch.setattr(distributed, "get_available_trackers", list)
    assert main(RECIPE, ["--output-dir", str(tmp_path / "run"), "--tracker", missing]) == 2
    assert f"pip install {missing}" in capsys.readouterr().err and not (tmp_path / "run").exists()
