"""`run.json`: facts about a run beside its settings and metrics, for readers of the model.

Recipe, time, hardware, versions, the size of data and networks; never a path, a host or a user.
"""

import dataclasses
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

import hfgen
from hfgen.checks import DATASET_ID
from hfgen.data import BUILT_IN
from hfgen.data.dataset import Dataset
from hfgen.loading.disk import write_text
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.settings import DATASETS, Settings

NAMED = (*DATASETS, "start_from", "autoencoder")
"""Fields that may name something on the Hub."""

MAX_CLASSES = 1000
"""Classes whose names are written down."""


def facts_of(settings: Settings, engine: Engine, threads: int) -> dict[str, Any]:
    """Return the facts that stay the same all through a run; `hub` and `changed` are names of fields of the settings.

    `hub`: those whose value is a Hub id; `changed`: those that are not the dataclass's default, given by the user or
    recommended by the recipe.
    """
    fields = dataclasses.fields(settings)
    return {
        "recipe": type(settings).__module__.rpartition(".")[2],
        "hub": [name for name in NAMED if _on_hub(getattr(settings, name, None))],
        "changed": [field.name for field in fields if getattr(settings, field.name) != field.default],
        "data": _data(engine.dataset),
        "parameters": engine.sizes(),
        "hardware": {
            "device": engine.device.type,
            "name": device_name(engine.device),
            "processes": engine.accelerator.num_processes,
            "threads": threads,
        },
        "versions": versions(),
    }


def write(path: Path, known: dict[str, Any], step: int, seconds: float | None, evaluated: list[str]) -> None:
    """Write `run.json`, whole or not at all: `known`, step, seconds of training, and names of evaluated metrics."""
    progress = {"step": step, "seconds": None if seconds is None else round(seconds, 1), "evaluated": evaluated}
    write_text(path, json.dumps({**known, **progress}, indent=1, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers depend on."""
    packages = {"hfgen": hfgen.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {**packages, "python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """Return the model of the processor or graphics card that a run is on; "" where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        return model[1].strip() if model else platform.machine()
    return platform.processor()


def _data(dataset: Dataset) -> dict[str, Any]:
    """Return size, shape, classes and fingerprint of a dataset; a stream has no size."""
    try:
        items: int | None = len(dataset)
    except TypeError:
        items = None
    return {
        "items": items,
        "shape": list(dataset.shape),
        "classes": dataset.num_classes,
        "class_names": (dataset.class_names or [])[:MAX_CLASSES],
        "fingerprint": dataset.fingerprint,
    }


def _on_hub(value: Any) -> bool:
    """Return whether a value that could be read is a Hub id: it is built in nowhere, and no file is called so."""
    if not isinstance(value, str) or value in BUILT_IN or not DATASET_ID.fullmatch(value):
        return False
    return not Path(value).expanduser().exists()
