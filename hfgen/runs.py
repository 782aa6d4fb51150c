"""Run folders of training, read in one place.

A run folder has the settings `config.yaml`, the record `run.json`, the numbers `metrics.jsonl`, sample grids
`samples/step-*.png`, verified `checkpoints/`, at the end the pipeline `model/`, and after `hfgen evaluate` the file
`evaluation.json`.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from hfgen.errors import ConfigError
from hfgen.loading import checkpoint
from hfgen.loading.files import read_json

SETTINGS, RECORD, METRICS, EVALUATION = "config.yaml", "run.json", "metrics.jsonl", "evaluation.json"
MODEL, CHECKPOINTS, GRIDS = "model", "checkpoints", "samples"
"""Names of the files and of the folders in a run folder."""

GRID = re.compile(r"step-\d+\.png", re.ASCII)


def find(model: str | Path) -> Path | None:
    """Return the run folder that `model` is, or whose `model/` it is, as an absolute path; None for other models."""
    path = Path(model).expanduser().absolute()
    if not path.is_dir():
        return None
    candidates = [path, path.parent] if path.name == MODEL else [path]
    return next((folder for folder in candidates if (folder / SETTINGS).is_file()), None)


def settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run: numbers, texts, None, or lists of them.

    Raises ConfigError if the file is missing, not YAML, or holds anything else.
    """
    path = run / SETTINGS
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); a run folder has its settings there") from error
    if not isinstance(values, dict) or not all(_is_setting(name, value) for name, value in values.items()):
        raise ConfigError(f"{path}: must hold `field: value` lines, the values numbers, texts or lists of them")
    return values


def record(run: Path) -> dict[str, Any]:
    """Return the record of a run: recipe, data, hardware, versions, step, seconds; {} for a run without one."""
    return _optional(run / RECORD)


def class_names(run: Path) -> list[str]:
    """Return the names of the classes in the training data of a run; [] without names."""
    data = record(run).get("data")
    if not isinstance(data, dict) or not isinstance(data.get("class_names"), list):
        return []
    return list(map(str, data["class_names"]))


def evaluation(run: Path) -> dict[str, Any]:
    """Return the evaluation of a run's model; {} if there is none."""
    return _optional(run / EVALUATION)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the logged numbers of a run, each line with its `step`; [] if there are none.

    A last line that was cut off is left out. Raises ConfigError for a complete line of another form.
    """
    path = run / METRICS
    found = list[dict[str, Any]]()
    for line in complete_lines(path):
        numbers = numbers_of(line)
        if numbers is None:
            raise ConfigError(f"{path}: each line must be a JSON object with a step, got {line!r:.80}")
        found.append(numbers)
    return found


def numbers_of(line: str) -> dict[str, Any] | None:
    """Return the numbers of a line of `metrics.jsonl`, with an int `step`; None for a line of another form."""
    try:
        numbers = json.loads(line)
        return {**numbers, "step": int(numbers["step"])}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a text file with their ends, without a last line that was cut off; [] for no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [f"{line}\n" for line in lines[:-1]]


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run that verifies; None if there is no checkpoint.

    Raises CheckpointError if there are checkpoints and none verifies.
    """
    return checkpoint.newest(run / CHECKPOINTS)


def newest_grid(run: Path) -> Path | None:
    """Return the newest sample grid of a run; None if there is none."""
    grids = [path for path in run.glob(f"{GRIDS}/*.png") if GRID.fullmatch(path.name)]
    return max(grids, default=None)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _is_setting(name: Any, value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return isinstance(name, str) and name.isidentifier() and not any(isinstance(item, dict | list) for item in items)
