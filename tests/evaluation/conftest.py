"""A cache of evaluations for each test."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the test's own cache, which is not there yet."""
    monkeypatch.setenv("HFGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
