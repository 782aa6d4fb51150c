"""Training from Python: `hfgen.train` runs any recipe and returns its pipeline, in a script or a notebook.

    pipe = hfgen.train("ddpm", dataset="digits", max_steps=500)
    pipe = hfgen.train("ddpm", dataset=(images, labels), class_conditional=True, output_dir="runs/mine")
"""

import atexit
import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hfgen import runs
from hfgen.checks import nearest
from hfgen.errors import ConfigError
from hfgen.loading.given import named
from hfgen.logging import get_logger
from hfgen.pipelines.auto import AutoPipeline
from hfgen.pipelines.base import Pipeline
from hfgen.registry import RECIPES
from hfgen.training.engine import run
from hfgen.training.engine.callback import Callback
from hfgen.training.engine.distributed import INTERRUPTED
from hfgen.training.engine.parse import settings_from
from hfgen.training.engine.record import NAMED

logger = get_logger("training")


def train(
    recipe: str,
    dataset: Any = None,
    *,
    output_dir: str | Path | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> Pipeline:
    """Return the pipeline that a recipe trains, with averaged weights, on the device of the run.

    recipe: `ddpm`, `score_sde`, `latent_diffusion`, `gan`, `vae`, `autoencoder`, `autoencoder_kl`, `vq_autoencoder`,
        `translation` or `classifier`. `hfgen train RECIPE --help` lists the settings of each.
    dataset: Training data: a name, folder, file or Hub id, or a Python object, as `hfgen.data.load_dataset` takes them.
        Default: that of the recipe. `dataset_a`, `dataset_b` and `eval_dataset` take the same; `start_from` and
        `autoencoder` take a pipeline too.
    output_dir: Folder of the run. Default: a temporary folder, which is printed, and deleted with the pipeline. The
        pipeline knows its folder as `run_folder`.
    callback: Function of (step, numbers), called in the main process after each step. `step` counts the steps done;
        `numbers` maps names to floats: the losses of this step, `learning_rate`, and at a step that is evaluated the
        results. A loss is fetched from the device when it is read. Return True to make this step the last one.
    settings: The other settings by name, such as `max_steps=500` or `learning_rate=1e-3`; `resume=True` continues the
        run in `output_dir`, exactly, or is refused if data or settings differ.

    The process does not exit, and its random state and number of threads stay as they were. Ctrl-C, and the stop button
    of a notebook, save a checkpoint and raise KeyboardInterrupt; signals are not handled off the main thread. Raises
    ConfigError, naming the nearest setting, for unknown names and impossible values, DataError for data that cannot be
    read, and the errors of training.
    """
    # find the recipe
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}; {nearest(recipe, RECIPES)}")
    spec = import_module(RECIPES[recipe]).RECIPE
    # name the objects, and train by settings of names
    given = {**settings, "dataset": dataset}
    folder = Path() if output_dir is None else Path(output_dir).expanduser()
    with named({name: value for name, value in given.items() if _is_object(name, value)}) as names, _undisturbed():
        chosen = settings_from(spec.settings, {**given, **names, "output_dir": folder}, f"hfgen.train({recipe!r})")
        if output_dir is None:
            folder = temporary_folder(recipe, chosen.resume)
        code = run.train(spec, dataclasses.replace(chosen, output_dir=folder), callback)
    # hand the pipeline over
    if code == INTERRUPTED:
        raise KeyboardInterrupt(f"stopped and saved; hfgen.train({recipe!r}, ..., output_dir={str(folder)!r}, "
                                "resume=True) continues")  # fmt: skip
    pipeline = AutoPipeline.from_pretrained(folder / runs.MODEL, device=PartialState().device)
    pipeline.run_folder = folder
    if output_dir is None:
        weakref.finalize(pipeline, shutil.rmtree, folder, ignore_errors=True)
    return pipeline


def temporary_folder(recipe: str, resume: bool) -> Path:
    """Return a new folder that is deleted when the process ends.

    Raises ConfigError on several processes, and to resume a run: both need the folder of the run.
    """
    if resume or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("output_dir must be given, the folder of the run, to resume it and on several processes")
    folder = Path(tempfile.mkdtemp(prefix=f"hfgen-{recipe}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logger.info(f"run folder {folder}: deleted with the pipeline; output_dir=... keeps it")
    return folder


def _is_object(name: str, value: Any) -> bool:
    """Return whether a field that may name data or a model has an object, or several files, in the place of a name."""
    return name in NAMED and not (value is None or isinstance(value, str | Path))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Context after which torch has the random state and the number of threads that it had before."""
    threads, cuda = torch.get_num_threads(), torch.cuda.is_available()
    with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
