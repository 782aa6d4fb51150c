"""The command line: help, errors without tracebacks, exit codes, samples."""

import dataclasses
import inspect
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfgen import __version__
from hfgen.cli import Publish
from hfgen.evaluation.settings import EvaluationArguments, field_texts
from hfgen.sampling.request import SampleRequest
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
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    empty = seconds("-c", "pass")
    assert seconds("-c", "import hfgen") - empty <= 0.1
    shown = seconds("-c", "import sys; sys.argv = ['hfgen', '--help']; from hfgen.cli import main; main()")
    assert shown <= 0.4                                        # CPU seconds, more on a busy machine


COMMANDS = ("sample", "publish", "script", "evaluate", "compare")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_shows_its_options_without_torch(flag: str) -> None:
    program = "import sys; from contextlib import suppress; from hfgen.cli import main\n"
    program += f"for name in {COMMANDS}:\n    with suppress(SystemExit):\n        main([name, {flag!r}])\n"
    program += "print([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"usage: hfgen {name}" in done.stdout


def test_options_keep_their_names_short_flags_and_defaults() -> None:
    from hfgen.cli import parse

    sample = parse(["sample", "run", "-o", "x.png", "-n", "3"])
    assert sample.output == Path("x.png") and sample.request == SampleRequest(model="run", number=3)
    publish = parse(["publish", "run", "me/it", "--public", "--message", "Hello", "--source", "x"])
    assert publish == Publish(model="run", repo_id="me/it", public=True, message="Hello", source="x")
    evaluate = parse(["evaluate", "--resolution", "8", "run", "--dataset", "digits", "--no-cache", "-o", "x.json"])
    assert (evaluate.model, evaluate.dataset, evaluate.output) == ("run", "digits", Path("x.json"))
    assert evaluate.arguments == EvaluationArguments(resolution=8, cache=False)
    compare = parse(["compare", "a", "b", "--dataset", "d", "-o", "x", "--resolution", "8", "4", "--skip-bad-images"])
    assert compare.models == ("a", "b") and compare.output == Path("x")
    assert compare.arguments == EvaluationArguments(resolution=(8, 4), skip_bad_images=True)


def test_the_keyword_arguments_of_evaluate_and_compare_are_the_options_of_the_commands() -> None:
    import hfgen as package

    fields = {one.name for one in dataclasses.fields(EvaluationArguments)}
    texts = field_texts(EvaluationArguments)
    assert fields == set(texts) and all(texts.values())
    for function in (package.evaluate, package.compare):
        parameters = inspect.signature(function).parameters
        assert fields <= set(parameters) and parameters["neighbours"].default == 5
        described = " ".join((function.__doc__ or "").split())
        assert all(f"{name}: {text}" in described for name, text in texts.items())
        assert "Annotated" not in str(inspect.signature(function))
    shown = " ".join(hfgen("evaluate", "--help").stdout.replace("│", " ").split())
    for name in fields - {"progress", "cache"}:
        assert f"--{name.replace('_', '-')}" in shown and texts[name] in shown
    assert "--no-cache" in shown and "progress" not in shown


def test_the_version_is_printed() -> None:
    assert hfgen("--version").stdout == f"hfgen {__version__}\n"
    assert f"Version {__version__}" in hfgen("--help").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", ""),
        ("nonsense", "nonsense"),
        ("sample", "MODEL"),
        ("evaluate run --dataset digits --nonsense 3", "--nonsense"),
        ("evaluate run", "--dataset"),
        ("compare run --dataset digits", "--output"),
        ("publish run", "REPO-ID"),
        ("sample run -n x", "--number"),
        ("evaluate run --dataset digits --resolution x", "--resolution"),
        ("sample run -o x.png -n 0", "error: --number must be an int in [1, 16777216], got 0"),
        ("evaluate run --dataset digits --batch-size 0", "error: batch_size must be an int >= 1, got 0"),
    ],
)
def test_wrong_words_end_in_one_page_of_usage(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfgen.cli import main

    with pytest.raises(SystemExit) as ended:
        main(words.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and len(said.splitlines()) < 30


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
