"""Fixtures that start runs and wait for them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.runs import ROOT, command, environment
from tests.training.tiny import make_autoencoder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of an autoencoder of grey images 8x8."""
    return str(make_autoencoder(tmp_path_factory.mktemp("autoencoders") / "grey", 1))


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a run and return its process."""

    def popen(folder: Path, *extra: str, processes: int = 1, recipe: str = "ddpm") -> subprocess.Popen[str]:
        words = command(folder, *extra, processes=processes, recipe=recipe)
        pipe = subprocess.PIPE
        return subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    return popen


@pytest.fixture
def train(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run to the end and return what was printed; fails unless the exit code is `code`."""

    def run(
        folder: Path, *extra: str, processes: int = 1, code: int = 0, recipe: str = "ddpm"
    ) -> subprocess.CompletedProcess[str]:
        process = start(folder, *extra, processes=processes, recipe=recipe)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
