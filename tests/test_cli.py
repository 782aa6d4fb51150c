"""The command line: help, errors without tracebacks, exit codes, samples."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forks import completed
from tests.training.runs import SHARED, TINY, environment

TINY_DDPM = [*SHARED, *TINY["ddpm"]]


def hfgen(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line; fail unless it ends with `code`, and never with a traceback."""
    done = completed(["hfgen", *words], environment())
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = hfgen("train", "ddpm", "--output-dir", str(folder), *TINY_DDPM, "--max-steps", "8", "--sample-every", "4")
    assert f"model    {folder}/model" in done.stdout and f"hfgen sample {folder}" in done.stdout
    return folder


def test_help_shows_only_commands_that_exist_and_train_lists_its_fields() -> None:
    text = hfgen("--help").stdout
    assert "train" in text and "sample" in text
    assert not any(later in text for later in ("hfgen check", "hfgen app", "hfgen figures", "hfgen show"))
    fields = hfgen("train", "ddpm", "--help").stdout
    assert "--batch-size" in fields and "--beta-schedule" in fields and "over all processes" in fields
    assert "ddpm" in hfgen("train", "--help").stdout


def test_import_and_help_are_quick_and_import_nothing_heavy() -> None:
    program = "import sys, hfgen; print(any(m in sys.modules for m in ('torch', 'diffusers', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

    def seconds(*words: str) -> float:
        times = []
        for _ in range(5):
            before = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            times.append(time.perf_counter() - before)
        return min(times)

    empty = seconds("-c", "pass")
    assert seconds("-c", "import hfgen") - empty <= 0.1
    shown = seconds("-c", "import sys; sys.argv = ['hfgen', '--help']; from hfgen.cli import main; main()")
    assert shown <= 0.3 + 0.2 * (os.getloadavg()[0] > 1.5)    # a busy machine gets a little more


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train nonsense", 2, "there is no recipe 'nonsense'; there are autoencoder, autoencoder_kl,"),
        ("train ddpm --output-dir {} --bach-size 3", 2, "--batch-size"),
        ("train ddpm --output-dir {} --batch-size 0", 2, "error: --batch-size must be above 0, got 0"),
        ("train ddpm --output-dir {} --dataset no/such/folder", 65, "no/such/folder"),
        ("train ddpm --output-dir {} --batch-size 5000", 65, "1,797 items are fewer than one batch of 5,000"),
        ("train ddpm --output-dir {} --resolution 9", 2, "9"),
        ("train ddpm --output-dir {} --micro-batch-size 60", 2, "the nearest are 60 and 120"),
        ("sample no/such/model/here -o x.png", 2, "no such folder, and not a Hub id"),
        ("sample {} -o x.tiff", 2, "must be a folder, or end in one of"),
    ],
)
def test_a_beginners_mistake_is_one_line_that_says_what_to_do(
    tmp_path: Path, words: str, code: int, message: str
) -> None:
    done = hfgen(*words.format(tmp_path / "out").split(), code=code)
    assert message in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()                   # the corrected command will find no leftovers


def test_a_folder_with_a_run_in_it_is_refused_without_resume_and_with_other_settings(finished: Path) -> None:
    again = ["train", "ddpm", "--output-dir", str(finished), *TINY_DDPM, "--max-steps", "8"]
    assert "is not empty: use --resume" in hfgen(*again, code=2).stderr
    other = hfgen(*again, "--sample-every", "4", "--resume", "--seed", "7", code=1)
    assert "seed: 0 in the run, 7 asked" in other.stderr
    done = hfgen("train", "ddpm", "--output-dir", str(finished), "--resume")
    assert "continued from step 8" in done.stdout and "finished step 8" in done.stdout


def pixels(path: Path) -> np.ndarray:
    """Return the pixels of a picture as integers."""
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_samples_do_not_depend_on_how_many_are_made_nor_on_the_batch(finished: Path, tmp_path: Path) -> None:
    common = ["sample", str(finished), "--num-steps", "5", "--seed", "3"]
    hfgen(*common, "-n", "6", "-o", str(tmp_path / "six"))
    hfgen(*common, "-n", "3", "--batch-size", "2", "-o", str(tmp_path / "three"))
    names = sorted(path.name for path in (tmp_path / "six").iterdir())
    assert names == [f"{i:05d}.png" for i in range(6)]
    for name in names[:3]:
        six, three = (pixels(tmp_path / folder / name) for folder in ("six", "three"))
        assert six.shape == (8, 8) and abs(six - three).max() <= 1
    hfgen(*common, "-n", "6", "-o", str(tmp_path / "grid.png"))
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (3 * 34 + 2, 2 * 34 + 2)


def test_the_run_folder_holds_what_the_design_says(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "samples", "model"}
    assert {p.name for p in (finished / "samples").iterdir()} == {"step-00000004.png", "step-00000008.png"}
    assert {p.name for p in (finished / "model").iterdir()} == {"model_index.json", "scheduler", "unet"}
    umask = os.umask(0)
    os.umask(umask)
    for path in finished.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_a_model_is_its_run_folder_its_model_folder_or_an_unfinished_run(finished: Path, tmp_path: Path) -> None:
    import shutil

    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished)
    shutil.rmtree(unfinished / "model")
    for i, model in enumerate((finished, finished / "model", unfinished)):
        hfgen("sample", str(model), "--num-steps", "3", "-n", "2", "-o", str(tmp_path / f"{i}.png"))
    pictures = [(tmp_path / f"{i}.png").read_bytes() for i in range(3)]
    assert pictures[0] == pictures[1] == pictures[2]


def test_the_model_can_be_sampled_from_python_as_the_readme_says(finished: Path) -> None:
    import hfgen as package

    pipeline = package.DDPMPipeline.from_pretrained(str(finished / "model"))
    pictures = pipeline(num_steps=5, batch_size=4).images
    assert len(pictures) == 4 and all(isinstance(picture, Image.Image) for picture in pictures)
