"""A run from its settings to the finished model: folder, checkpoints, sample grids, interruption, budget."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hfgen import checkpoint
from hfgen.data import Dataset, load_dataset, require_batch
from hfgen.errors import CheckpointError, CollapseError, ConfigError, ResourceError, exit_code_of
from hfgen.memory import keep_memory
from hfgen.publish import publish_finished
from hfgen.training import facts, state
from hfgen.training.budget import steps_within
from hfgen.training.engine import Build, Engine
from hfgen.training.log import Log
from hfgen.training.runtime import (
    INTERRUPTED,
    StopSignal,
    accelerator_for,
    chosen_precision,
    precision_in_words,
    set_threads,
    share,
)
from hfgen.training.settings import AnySettings, Settings, check_same, parse, write_yaml
from hfgen.training.start import starting_from
from hfgen.upload import logged_in

Recommend = Callable[[Any, Dataset], Any]
"""Returns a recipe's settings with what it recommends for a dataset in the place of every None."""

Open = Callable[[Any], Dataset]
"""Returns the data that a recipe's settings name."""

CHECK_EVERY = 50
"""Steps between looks at the count of non-finite steps, where the log does not look more often."""


def main(
    settings_class: type[AnySettings],
    build: Build,
    arguments: list[str] | None,
    recommend: Recommend,
    open_data: Open | None = None,
) -> int:
    """Return the exit code of a recipe's command line: 0, 75 if interrupted and saved, else the error's.

    `open_data`: for a recipe that takes other data than the one dataset of `open_dataset`.
    """
    return exit_code_of(lambda: train(parse(settings_class, arguments), build, recommend, open_data or open_dataset))


def train(settings: Settings, build: Build, recommend: Recommend, open_data: Open) -> int:
    """Return 0 when the run is finished and 75 when it was asked to stop and has saved. Errors are raised."""
    started = time.monotonic()
    keep_memory()
    settings = dataclasses.replace(settings, mixed_precision=chosen_precision(settings))
    accelerator = accelerator_for(settings)
    threads = set_threads(settings.threads)
    stored = look_into_folder(settings)
    dataset = open_data(settings)
    timed = settings.max_steps is None and settings.budget is not None
    settings = recommend(settings, dataset)
    if settings.start_from is not None and stored is None:
        build = starting_from(settings.start_from, build)
    share(settings, accelerator.num_processes, accelerator.process_index)
    require_batch(dataset, settings.global_batch)
    if timed:
        steps = steps_within(settings, build, dataset, accelerator, started, look)
        settings = dataclasses.replace(settings, max_steps=steps)
    engine = Engine(settings, build, dataset, accelerator)
    make_folder(settings.output_dir)
    code = Run(settings, engine, stored, threads).go()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if code == 0 and settings.publish_to is not None and accelerator.is_main_process:
        publish_finished(settings.output_dir, settings.publish_to)
    return code


def open_dataset(settings: Settings, **more: Any) -> Dataset:
    """Return the dataset that the settings name, read with `more` choices if a recipe has them."""
    names = ("split", "image_column", "label_column", "resolution", "channels", "background", "skip_bad_images")
    choices = {name: getattr(settings, name) for name in (*names, "flip", "streaming", "num_workers")}
    return load_dataset(settings.dataset, **choices, **more)


def look_into_folder(settings: Settings) -> Path | None:
    """Return the checkpoint to resume from, if any; nothing is made yet, so a mistake elsewhere leaves no trace.

    Raises ConfigError for a folder with something in it and no --resume, ResourceError where nothing can be written.
    """
    folder = settings.output_dir
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not settings.resume:
        raise ConfigError(f"{folder} is not empty: use --resume to continue the run in it, or another --output-dir")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ResourceError(f"{folder}: cannot be written, {existing} is not a folder that you may write to")
    return checkpoint.newest(folder / "checkpoints") if settings.resume else None


def make_folder(folder: Path) -> None:
    """Make the folders of a run. Raises ResourceError where that is not possible."""
    try:
        for name in ("samples", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}") from error


def look(engine: Engine) -> tuple[Any, dict[str, float]]:
    """Return the sample grid of the networks as users get them, and the numbers of the recipe's evaluation."""
    nets = state.served(engine.nets, engine.averages)
    for net in nets.values():
        net.eval()
    pipeline = engine.recipe.pipeline(nets)
    pipeline.set_progress_bar_config(disable=True)
    picture = engine.recipe.preview(pipeline)
    numbers = engine.recipe.evaluate(nets) if engine.recipe.evaluate else {}
    engine.resume_training()
    return picture, numbers


class Run:
    """The loop around the engine, and everything that a run leaves in its folder."""

    def __init__(self, settings: Settings, engine: Engine, stored: Path | None, threads: int):
        assert settings.max_steps is not None
        self.settings, self.engine, self.threads, self.max_steps = settings, engine, threads, settings.max_steps
        self.accelerator, self.folder = engine.accelerator, settings.output_dir
        self.main = engine.accelerator.is_main_process
        self.numbers, self.guarded = dict[str, float](), dict[str, Any]()
        self.before: float | None = 0.0                              # seconds of earlier sessions, None: not known
        self.began = time.monotonic()
        self.step = self.saved = self.resume(stored) if stored else 0
        if self.main:
            self.preflight()
            write_yaml(settings, self.folder / "config.yaml")
            self.facts = facts.facts(settings, engine, threads)
        self.log = Log(self.folder / "metrics.jsonl", self.accelerator, self.step, self.max_steps)
        if settings.tracker != "none":
            self.accelerator.init_trackers("hfgen")

    def go(self) -> int:
        """Train to the last step, or until asked to stop; return the exit code."""
        self.log.say(self.introduction())
        self.began = time.monotonic()
        with StopSignal() as stop:
            for step in self.engine.train(self.step, self.max_steps - self.step, self.max_steps):
                self.step = step
                self.log.advance()
                stopping = stop.agreed()
                self.after_step(stopping)
                if stopping and self.step < self.max_steps:
                    self.log.close()
                    self.log.say(f"stopped at step {self.step:,}; continue with --resume")
                    return INTERRUPTED
            self.finish(time.monotonic() - self.began)
        return 0

    def after_step(self, stopping: bool) -> None:
        """Log, draw and save where this step is due."""
        step = self.step
        last = step == self.max_steps
        due = {name: bool(every) and step % every == 0 for name, every in self.intervals().items()}
        if due["log"] or due["check"] or due["save"] or last:
            self.engine.check_finite(step)
        numbers: dict[str, float] = {}
        if (due["sample"] or last) and self.main:
            picture, numbers = look(self.engine)
            picture.save(self.folder / "samples" / f"step-{step:08d}.png")
            self.numbers = numbers
        if due["log"] or last:
            rate = self.engine.recipe.phases[0].optimizer.param_groups[0]["lr"]
            numbers = {**self.engine.log.fetch(self.accelerator), "learning_rate": rate, **numbers}
        if numbers:
            self.log.write(step, numbers)
            self.watch(numbers)
        if due["save"] or last or stopping:
            self.save()

    def watch(self, numbers: dict[str, float]) -> None:
        """Warn where the recipe's guard sees trouble begin; with `stop_on_collapse` save and raise CollapseError."""
        if self.engine.recipe.guard is None:
            return
        self.guarded, warning = self.engine.recipe.guard(self.guarded, {"step": self.step, **numbers})
        if warning is None:
            return
        self.log.say(f"warning: step {self.step:,}: {warning}")
        if getattr(self.settings, "stop_on_collapse", False):
            self.save()
            self.log.close()
            raise CollapseError(f"stopped at step {self.step:,}: {warning}")

    def intervals(self) -> dict[str, int]:
        """Return the steps between logs, looks at non-finite steps, sample grids and checkpoints."""
        s = self.settings
        return {"log": s.log_every, "check": CHECK_EVERY, "sample": s.sample_every, "save": s.save_every}

    def save(self) -> None:
        """Write a checkpoint of this step; all processes wait until it is there."""
        engine = self.engine
        now = {
            "step": self.step,
            "dataset": engine.dataset.fingerprint,
            "settings": json.loads(json.dumps(dataclasses.asdict(self.settings), default=str)),
            "log": engine.log.state(self.accelerator),
            "guard": self.guarded,
            "seconds": self.seconds(),
        }
        if self.main and self.saved != self.step:
            checkpoint.save(
                self.folder / "checkpoints", self.step,
                lambda folder: state.write(folder, engine.recipe, engine.nets, engine.averages, now),
                self.about(), self.settings.keep_checkpoints,
            )  # fmt: skip
            facts.write(self.folder / "run.json", self.facts, self.step, now["seconds"], sorted(self.numbers))
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def resume(self, stored: Path) -> int:
        """Put the engine into the state of the checkpoint `stored`; return its step. Raises CheckpointError."""
        engine = self.engine
        then = json.loads((stored / "state.json").read_text(encoding="utf-8"))
        check_same(self.settings, then["settings"], self.folder)
        if then["dataset"] != engine.dataset.fingerprint:
            raise CheckpointError(
                f"{self.folder}: the dataset {engine.dataset.name!r} is not the one this run was trained on "
                f"(fingerprint {engine.dataset.fingerprint[:12]}, was {then['dataset'][:12]}). Use it, or a new folder."
            )
        if then["step"] > self.max_steps:
            raise CheckpointError(f"{stored}: is beyond --max-steps {self.max_steps}; ask for more steps")
        state.read(stored, engine.recipe, engine.nets, engine.averages)
        engine.log.restore(then["log"], engine.device)
        self.guarded = then.get("guard", {})
        self.before = then.get("seconds")
        return int(then["step"])

    def seconds(self) -> float | None:
        """Return the seconds that this run has trained, all sessions together; None where one did not count them."""
        return None if self.before is None else self.before + time.monotonic() - self.began

    def about(self) -> dict[str, Any]:
        """Return what a checkpoint's exactness depends on besides its settings."""
        processes = self.accelerator.num_processes
        return {"versions": facts.versions(), "processes": processes, "threads": self.threads}

    def preflight(self) -> None:
        """Raise ResourceError if the disk has no room for the checkpoints that will be kept, and one in the making."""
        parameters = sum(p.numel() for net in self.engine.nets.values() for p in net.parameters())
        needed = parameters * 4 * 4 * (self.settings.keep_checkpoints + 1)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ResourceError(f"{self.folder}: about {needed:,} bytes are needed for checkpoints, {free:,} are free")

    def introduction(self) -> str:
        """Return what is about to happen, in a few lines."""
        engine, settings = self.engine, self.settings
        counts = {name: sum(p.numel() for p in net.parameters()) for name, net in engine.nets.items()}
        sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
        lines = [
            engine.dataset.describe(),
            f"parameters: {sizes}; {self.max_steps:,} steps of {settings.global_batch}"
            + (f", continued from step {self.step:,}" if self.step else ""),
            f"{self.accelerator.num_processes} process(es) on {engine.device.type}, {self.threads} thread(s) each, "
            f"precision {precision_in_words(settings)}",
        ]
        divided = self.accelerator.num_processes > 1 or len(engine.micro_batches) > 1
        random = sorted({type(m).__name__ for net in engine.nets.values() for m in net.modules() if _is_local(m)})
        if divided and random:
            lines.append(f"{', '.join(random)}: depends on how the batch is divided; resuming is exact all the same")
        if settings.publish_to is not None and not logged_in():
            lines.append(f"--publish-to {settings.publish_to}: nobody is logged in yet; run `hf auth login` meanwhile")
        return "\n".join(lines)

    def finish(self, seconds: float) -> None:
        """Write the finished model and say where everything is."""
        self.log.close()
        if not self.main:
            return
        nets = state.served(self.engine.nets, self.engine.averages)
        self.engine.recipe.pipeline(nets).save_pretrained(self.folder / "model")
        found = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        self.log.say(
            f"finished step {self.step:,} after {seconds:.0f} s{': ' if found else ''}{found}\n"
            f"model    {self.folder / 'model'}\n"
            f"grid     {self.folder / 'samples' / f'step-{self.step:08d}.png'}\n"
            f"try      {self.engine.recipe.usage.format(run=self.folder)}"
        )


def _is_local(module: nn.Module) -> bool:
    """Return whether a module's output depends on more than its own sample: dropout, batch statistics."""
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(module, nn.modules.batchnorm._BatchNorm)
