"""A recipe as one file: its inline metadata are those of PEP 723, and it trains."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hfgen.errors import ConfigError
from hfgen.hub.script import write_script
from hfgen.registry import RECIPES
from tests.training.runs import ROOT, SHARED, TINY, environment

SOURCE = "git+https://example.org/owner/hfgen"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_metadata_are_read_as_pep_723_says(recipe: str, tmp_path: Path) -> None:
    write_script(recipe, tmp_path / "train.py", SOURCE)
    text = (tmp_path / "train.py").read_text(encoding="utf-8")
    head = text.split("# /// script\n")[1].split("# ///\n")[0]
    metadata = tomllib.loads("".join(line.removeprefix("# ") for line in head.splitlines(keepends=True)))
    assert metadata == {"requires-python": ">=3.11", "dependencies": [f"hfgen @ {SOURCE}"]}
    compile(text, "train.py", "exec")


def test_the_script_trains(tmp_path: Path) -> None:
    write_script("ddpm", tmp_path / "train.py", f"hfgen @ file://{ROOT}")
    words = ["--output-dir", str(tmp_path / "run"), *SHARED, *TINY["ddpm"], "--max-steps", "2"]
    command = [sys.executable, str(tmp_path / "train.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "run" / "model" / "model_index.json").is_file(), done.stderr


def test_a_script_needs_a_source_and_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HFGEN_SOURCE", raising=False)
    with pytest.raises(ConfigError, match="--source, or HFGEN_SOURCE"):
        write_script("ddpm", tmp_path / "train.py")
    (tmp_path / "train.py").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        write_script("ddpm", tmp_path / "train.py", SOURCE)
