"""Trackers of experiments through Accelerate: settings, name and resumption of a run, its numbers and sample grids."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from hfgen.loading.disk import write_text
from hfgen.training.engine.settings import Settings, plain_values

PROJECT = "hfgen"
FILE = "tracker.json"
"""File in the folder of a run with the id under which trackers know it."""


def start_tracker(accelerator: Accelerator, settings: Settings, step: int) -> None:
    """Start the tracker of a run that begins, or continues, at `step`; it gets the settings and the folder's name.

    A continued run is the same one for the tracker. Numbers after `step`, of steps that are repeated, are dropped by
    tensorboard and written again.
    """
    # name the run
    folder = settings.output_dir
    name, run_id = folder.resolve().name, id_of(folder, new=step == 0) if accelerator.is_main_process else ""
    resume = "allow" if step else "never"
    choices: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1} if step else {},
        "trackio": {"name": f"{name}-{run_id}", "resume": resume, "private": not settings.tracker_public},
        "wandb": {"name": name, "id": run_id, "resume": resume, "dir": str(folder)},
    }
    # hand the settings over; tensorboard would store those of a continued run once more
    config: dict[str, Any] | None = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in plain_values(settings).items()
        if value is not None
    }
    if step and settings.tracker == "tensorboard":
        config = None
    accelerator.init_trackers(PROJECT, config, choices)


def id_of(folder: Path, new: bool) -> str:
    """Return the id of the run in `folder`: a `new` one, or the one that it has, which is made if it is missing."""
    path = folder / FILE
    if new or not path.is_file():
        write_text(path, json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    run_id: str = json.loads(path.read_text(encoding="utf-8"))["id"]
    return run_id


def track_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Log a sample grid of a step under the name "samples"."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            pixels = np.asarray(picture.convert("RGB"))[None]                            # (1, H, W, 3)
            tracker.log_images({"samples": pixels}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [picture]}, step=step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({"samples": trackio.Image(picture)}, step=step)
