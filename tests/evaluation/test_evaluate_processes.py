"""Two processes judge as one does, and a mistake in one of them ends both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hfgen
from tests.cards.helpers import MAKERS
from tests.training.runs import LAUNCH_TWO, ROOT, environment

METRICS = "frechet,kid,prdc,privacy,likelihood"


def launched(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    known = {**environment(), "HFGEN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *LAUNCH_TWO, *words]
    return subprocess.run(command, env=known, cwd=ROOT, capture_output=True, text=True, timeout=300)


def close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-6 * max(1.0, abs(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_two_processes_judge_as_one(tmp_path: Path) -> None:
    model, path = tmp_path / "model", tmp_path / "two.json"
    MAKERS["DDPMPipeline"]().save_pretrained(model)
    words = f"--dataset digits --num-samples 100 --batch-size 16 --num-steps 3 --resamples 50 -o {path}".split()
    words += ["--likelihood-images", "8"]                                               # no bound on seconds
    done = launched(tmp_path, "-m", "hfgen.cli", "evaluate", str(model), *words, "--metrics", METRICS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("frechet ") == 1                                           # the first process prints
    two = json.loads(path.read_text())
    settings = {"num_samples": 100, "batch_size": 16, "num_steps": 3, "resamples": 50, "metrics": METRICS}
    settings["likelihood_images"] = 8
    one = hfgen.evaluate(model, "digits", cache=False, progress=False, **settings).to_dict()
    assert two.pop("processes") == 2 and one.pop("processes") == 1
    assert len(one["metrics"]) >= 10 and close(one, two)


@pytest.mark.slow
def test_two_processes_compare_as_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    models = [tmp_path / name for name in ("GANPipeline", "DDPMPipeline")]
    for model in models:
        torch.manual_seed(0)
        MAKERS[model.name]().save_pretrained(model)
    words = "--num-samples 40 --batch-size 8 --num-steps 2 --resamples 20 --metrics frechet,prdc,privacy".split()
    where = ["--dataset", "digits", "-o", str(tmp_path / "two")]
    done = launched(tmp_path, "-m", "hfgen.cli", "compare", *map(str, models), *where, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1                                         # the first process writes
    settings: dict[str, Any] = {"num_samples": 40, "batch_size": 8, "num_steps": 2, "resamples": 20}
    settings |= {"metrics": "frechet,prdc,privacy", "cache": False, "progress": False}
    one = hfgen.compare(models, "digits", tmp_path / "one", **settings).to_dict()
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert [row.pop("processes") for row in two["models"]] == [2, 2] and len(one["models"]) == 2
    for row in one["models"]:
        row.pop("processes")
    assert close(json.loads(json.dumps(one)), two)
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) >= 6


SCRIPT = """
import sys, torch, hfgen
from hfgen.errors import ConfigError, DataError
from hfgen.evaluation.distributed import Processes, finish

processes = Processes()
assert processes.count == 2


def broken(batch_size):
    return torch.rand(batch_size - (processes.rank == 1), 1, 8, 8)     # only the second process notices


for model, kind in ((broken, DataError), (sys.argv[1], ConfigError)):
    scale = 2.0 if kind is ConfigError else 1.0
    try:
        hfgen.evaluate(model, "digits", num_samples=64, batch_size=16, guidance_scale=scale)
        raise SystemExit("no error")
    except kind as error:
        print(processes.rank, kind.__name__, error)
found = hfgen.evaluate(lambda batch_size: torch.rand(batch_size, 1, 8, 8), "digits", num_samples=64, metrics="frechet")
print(processes.rank, "value", found.metrics["frechet"]["value"], found.processes)
finish()
"""


@pytest.mark.slow
def test_an_error_in_one_process_is_raised_in_both_and_both_return_the_same(tmp_path: Path) -> None:
    MAKERS["GANPipeline"]().save_pretrained(tmp_path / "gan")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launched(tmp_path, str(tmp_path / "script.py"), str(tmp_path / "gan"))
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 6 and [line[2:] for line in lines[:3]] == [line[2:] for line in lines[3:]]
    assert "0 DataError function: gave 15 samples where 16 were requested" in done.stdout
    assert "guidance_scale must be 1: GANPipeline cannot be guided, got 2.0" in done.stdout
