"""For tests of benchmarks: small trainings in this process, one after the other."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from hfgen.training.engine.run import main

SECONDS = 15.0
"""What every training is said to have taken."""


def train(recipe: str, folder: Path, seed: int, fields: Iterable[str]) -> float:
    """Train as `harness.train` does, but here."""
    words = ["--output-dir", str(folder), "--seed", str(seed), *fields]
    assert main(import_module(f"hfgen.training.{recipe}").RECIPE, words) == 0
    return SECONDS


class Trainings:
    """Trains as `train`, and keeps the run folders in `folders`."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, recipe: str, folder: Path, seed: int, fields: Iterable[str]) -> float:
        """Return what `train` does."""
        self.folders.append(folder)
        return train(recipe, folder, seed, fields)


class InTurn:
    """In the place of a pool of threads: signals can be handled in the main thread only."""

    def __init__(self, workers: int) -> None:
        self.map = map

    def __enter__(self) -> "InTurn":
        """Return the pool."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Have nothing to wait for."""
