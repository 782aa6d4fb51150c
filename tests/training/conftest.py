"""Fixtures that start runs and wait for them."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Fork
from tests.training.runs import ROOT, arguments, command, environment
from tests.training.tiny import make_autoencoder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of an autoencoder of grey images 8x8."""
    return str(make_autoencoder(tmp_path_factory.mktemp("autoencoders") / "grey", 1))


@pytest.fixture
def start() -> Iterator[Callable[..., Fork | subprocess.Popen[str]]]:
    """Start a run and return its process, or the launcher of its processes if `launched`; it ends with the test."""
    running = list[Fork]()

    def begin(
        folder: Path, *extra: str, processes: int = 1, recipe: str = "ddpm", launched: bool = False
    ) -> Fork | subprocess.Popen[str]:
        if launched:
            words, pipe = command(folder, *extra, processes=processes, recipe=recipe), subprocess.PIPE
            return subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        words = [f"hfgen.training.{recipe}", *arguments(folder, *extra, recipe=recipe)]
        running.append(Fork(words, environment(), processes))
        return running[-1]

    yield begin
    for run in running:
        run.close()


@pytest.fixture
def train(start: Callable[..., Fork | subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run to the end and return what was printed; fails unless the exit code is `code`."""

    def run(folder: Path, *extra: str, code: int = 0, **choices: Any) -> subprocess.CompletedProcess[str]:
        process = start(folder, *extra, **choices)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
