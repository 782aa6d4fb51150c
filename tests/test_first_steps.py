"""Small things that a new user meets: names of classes, slips in options, the closing hint, warnings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfgen import registry
from tests.command_line import hfgen
from tests.training.runs import TINY

STEPS = "--batch-size 8 --max-steps 2 --warmup-steps 0 --sample-every 0 --threads 1 --class-conditional".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a tiny model of boats and cars, in folders of their names."""
    home = tmp_path_factory.mktemp("first")
    drawn = np.random.default_rng(0)
    for name in ("boats", "cars"):
        (home / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(drawn.integers(0, 255, (8, 8), "uint8")).save(home / "photos" / name / f"{i}.png")
    run = home / "run"
    words = ["--dataset", home / "photos", "--output-dir", run, *TINY["ddpm"], *STEPS]
    ended = hfgen("train", "ddpm", *words)
    assert ended.exit_code == 0, ended.output
    (home / "said.txt").write_text(ended.output)
    return run


def test_a_class_is_sampled_by_its_name(run: Path, tmp_path: Path) -> None:
    common = ["sample", run, "--num-steps", 3, "-n", 2, "--guidance-scale", 1]
    for label in ("cars", "1", "boats"):
        assert hfgen(*common, "--label", label, "-o", tmp_path / f"{label}.png").exit_code == 0
    cars, one, boats = ((tmp_path / f"{label}.png").read_bytes() for label in ("cars", "1", "boats"))
    assert cars == one != boats


def test_a_slip_in_the_name_of_a_class_is_told_with_the_names_that_there_are(run: Path) -> None:
    ended = hfgen("sample", run, "--label", "boat", "-o", "unused.png")
    assert ended.exit_code == 2
    assert "--label boat" in ended.stderr and "did you mean 'boats'? there are boats, cars" in ended.stderr


def test_the_closing_hint_of_a_training_names_the_recommended_sampler(run: Path) -> None:
    said = (run.parent / "said.txt").read_text()
    assert f"try      hfgen sample {run} --label 0 --sampler dpmpp_2m --num-steps 20 -n 64" in said


@pytest.mark.parametrize(
    ("word", "field"),
    [("--lr", "--learning-rate"), ("--train_batch_size", "--batch-size"), ("--max-train-steps", "--max-steps")],
)
def test_a_name_of_other_training_scripts_is_answered_with_the_field(word: str, field: str) -> None:
    ended = hfgen("train", "ddpm", word, 3, "--output-dir", "unused")
    assert ended.exit_code == 2 and ended.stderr == f"error: there is no {word}; did you mean {field}?\n"


def test_a_similar_folder_is_named_before_the_hub_is_asked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    name = f"{run.parent.name}/photo"
    ended = hfgen("train", "ddpm", "--dataset", name, "--output-dir", "unused")
    assert ended.exit_code == 65 and f"did you mean '{run.parent.name}/photos'?" in ended.stderr
    ended = hfgen("sample", f"{run.parent.name}/runn", "-o", "unused.png")
    assert ended.exit_code == 2 and f"did you mean '{run.parent.name}/run'?" in ended.stderr


def test_a_warning_shows_no_source_line_of_the_library(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("from hfgen import DDPMScheduler\n"
                      "scheduler = DDPMScheduler(variance_type='mine')    # here\n"
                      "from hfgen.logging import print_warnings_in_one_line, warn\n"
                      "print_warnings_in_one_line()\n"
                      "warn('on the command line')\n")
    done = subprocess.run([sys.executable, "-W", "always::UserWarning", script], capture_output=True, text=True)
    assert f"{script}:2: UserWarning: variance_type 'mine' is unknown" in done.stderr
    assert "scheduler = DDPMScheduler(variance_type='mine')    # here" in done.stderr
    assert done.stderr.splitlines()[-1] == "warning: on the command line"


def test_the_names_of_built_in_data_are_those_that_can_be_read() -> None:
    from hfgen.data.shapes.dataset import NAMES
    from hfgen.data.toy import DISTRIBUTIONS

    assert tuple(DISTRIBUTIONS) == registry.TOYS and registry.DRAWN == NAMES
