"""A run from its settings to the finished model: folder, checkpoints, sample grids, interruption, budget."""

import atexit
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from hfgen.data import require_batch
from hfgen.errors import CheckpointError, CollapseError, exit_code_of
from hfgen.hub.publish import publish_finished
from hfgen.loading import checkpoint
from hfgen.loading.disk import persistent
from hfgen.logging import get_logger
from hfgen.memory import keep_memory
from hfgen.training.engine import record, state
from hfgen.training.engine.budget import agree, untrained, within_budget
from hfgen.training.engine.callback import Callback, LastStep, StepNumbers
from hfgen.training.engine.distributed import (
    INTERRUPTED,
    Interrupted,
    StopSignal,
    accelerator_for,
    chosen_precision,
    set_threads,
    split_batch,
)
from hfgen.training.engine.folder import Lock, make_folder, require_room, stored_checkpoint
from hfgen.training.engine.init_from import with_weights_of
from hfgen.training.engine.introduction import introduction
from hfgen.training.engine.log import Log, activity
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.preview import draw, networks_in_use, preview_and_evaluate, write_picture
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.settings import AUTO, Settings, check_same, small, write_yaml
from hfgen.training.engine.trackers import start_tracker, track_picture

logger = get_logger("training")

UNPUBLISHED = 69
"""Exit code of a finished run whose model could not be published: EX_UNAVAILABLE of sysexits.h."""

CHECK_EVERY = 50
"""Steps between looks at the count of non-finite steps, where the log does not look more often."""


def main(recipe: RecipeSpec[Any], arguments: list[str] | None = None) -> int:
    """Return the exit code of a recipe's command line: 0, 75 if interrupted and to be continued, else the error's.

    `arguments`: words of the command line. Default: sys.argv.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: train(recipe, recipe.spec.parse(words)))


def train(recipe: RecipeSpec[Any], settings: Settings, callback: Callback | None = None) -> int:
    """Return 0 when the run is finished, 75 when a signal stopped it before, 69 when it is finished but its model could
    not be published. Errors are raised.

    `callback`: called in the main process after each step; the step after which it returns True is the last one.

    Here, and nowhere else, the open fields of the settings are completed. A stop signal ends the steps that are timed
    for a budget, and there is nothing to save yet; later the step in progress is finished and saved. An evaluation or a
    sample grid is left at once. Once the model is saved, only a missing evaluation, or a requested upload, makes the
    code 75: --resume makes up for it. A missing last grid does not, and --resume draws it as well.
    """
    started = time.monotonic()
    keep_memory()
    # prepare the process: precision, Accelerator, threads
    settings = dataclasses.replace(small(settings), mixed_precision=chosen_precision(settings))
    accelerator = accelerator_for(settings)
    threads = set_threads(settings.threads)
    lock = Lock(settings.output_dir, accelerator.is_main_process)
    try:
        code = _train(recipe, settings, accelerator, threads, lock, started, callback)
    finally:
        lock.release()
    # publish; the processes stay connected, for what a program does next
    atexit.register(accelerator.state.destroy_process_group)
    if code == 0 and settings.publish_to is not None and accelerator.is_main_process:
        return 0 if publish_finished(settings.output_dir, settings.publish_to) else UNPUBLISHED
    return code


def _train(
    recipe: RecipeSpec[Any],
    settings: Settings,
    accelerator: Accelerator,
    threads: int,
    lock: Lock,
    started: float,
    callback: Callback | None,
) -> int:
    """Return 0 when the run is finished, and 75 when a signal stopped it before."""
    # read the data, and complete the settings by them
    if settings.resume:
        lock.take()
    stored = stored_checkpoint(settings)
    with activity(f"reading {settings.dataset}", accelerator.is_main_process):
        dataset = recipe.open_data(settings)
    timed = settings.max_steps is None and settings.budget is not None
    usual = recipe.recommended(dataclasses.replace(settings, max_steps=AUTO), dataset).max_steps
    others = recipe.spec.smaller(settings, dataset) if timed and settings.start_from is None else []
    settings = recipe.recommended(settings, dataset)
    build = recipe.build
    if settings.start_from is not None and stored is None:
        build = with_weights_of(settings.start_from, build, recipe.build_on)
    split_batch(settings, accelerator.num_processes, accelerator.process_index)
    require_batch(dataset, settings.batch_size)
    # time steps for a budget, build the networks, run
    with StopSignal() as stop:
        try:
            notes = list[str]()
            if timed:
                with activity("timing steps", accelerator.is_main_process):
                    settings, notes = within_budget(
                        settings, others, build, dataset, accelerator, started, stop,
                        lambda trial: preview_and_evaluate(trial, stop),
                    )  # fmt: skip
            notes += [line for line in [untrained(settings, usual)] if line]
            with activity("building networks", accelerator.is_main_process):
                engine = Engine(settings, build, dataset, accelerator)
                make_folder(settings.output_dir)
                lock.take()
            code = Run(settings, engine, stored, threads, stop, started, notes, callback).loop()
        except Interrupted:
            code = INTERRUPTED
            if accelerator.is_main_process:
                logger.info("stopped before the first step: nothing was trained, nothing is written; start it again")
    # finish together
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return code


class Run:
    """The loop around the engine, and everything that a run leaves in its folder."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        stored: Path | None,
        threads: int,
        stop: StopSignal,
        started: float,
        notes: list[str],
        callback: Callback | None = None,
    ):
        # keep the parts and counters of the run
        self.stop, self.started, self.notes, self.callback = stop, started, notes, callback
        self.aside = 0.0                                             # seconds of saves, evaluations and grids
        self.unfinished = False
        self.settings, self.engine, self.threads, self.max_steps = settings, engine, threads, settings.max_steps
        self.accelerator, self.folder = engine.accelerator, settings.output_dir
        self.main = engine.accelerator.is_main_process
        self.numbers, self.guarded = dict[str, float](), dict[str, Any]()
        self.reported = dict[str, float]()                           # the numbers of this step's line of the log
        self.before: float | None = 0.0                              # seconds of earlier sessions, None: not known
        self.began = time.monotonic()
        # resume, or begin
        self.step = self.saved = self.resume(stored) if stored else 0
        if self.main:
            require_room(self.folder, engine, settings.keep_checkpoints)
            self.written(lambda: write_yaml(settings, self.folder / "config.yaml"))
            self.facts = record.facts_of(settings, engine, threads)
        # open the log
        self.log = Log(self.folder / "metrics.jsonl", self.accelerator, self.step, self.max_steps)
        if settings.tracker != "none":
            start_tracker(self.accelerator, settings, self.step)

    def loop(self) -> int:
        """Train to the last step, or until a signal stops it; return the exit code."""
        self.log.say("\n".join([introduction(self.settings, self.engine, self.threads, self.step), *self.notes]))
        self.began = time.monotonic()
        with closing(self.log):
            stopping = self.train_on()
        # finish, unless it was stopped
        if stopping and self.step < self.max_steps:
            self.log.say(f"stopped at step {self.step:,}; continue with --resume")
            return INTERRUPTED
        self.finish()
        unpublished = self.settings.publish_to is not None and self.stop.agreed()
        return INTERRUPTED if self.unfinished or unpublished else 0

    def train_on(self) -> bool:
        """Take one optimiser step after the other; return whether a signal stopped them."""
        # make up for work that was cut off
        if self.step and self.catch_up():
            return True
        # take steps, and show each to the callback
        last_step = LastStep(self.engine.log)
        for step in self.engine.train(self.step, self.max_steps - self.step, self.max_steps):
            self.step = step
            self.log.advance()
            losses = {} if self.callback is None else last_step.means()
            if self.after_step():
                return True
            if self.callback is not None and agree(self.main and bool(self.callback(step, self.numbers_of(losses)))):
                self.end_here()
                break
            last_step.begin()
        return False

    def numbers_of(self, losses: dict[str, Tensor]) -> StepNumbers:
        """Return the numbers of this step: its losses, each of shape (), its learning rate and its evaluation."""
        return StepNumbers(losses, {**self.reported, "learning_rate": self.learning_rate})

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the last step, that of the first phase."""
        return float(self.engine.recipe.phases[0].optimizer.param_groups[0]["lr"])

    def end_here(self) -> None:
        """Make this step the last one: save it, write the model, and draw its grid."""
        self.max_steps = self.step
        self.save()
        self.save_model()
        if self.main and not self.grid().exists():
            self.draw()

    def after_step(self) -> bool:
        """Save, log, evaluate and draw where this step is due; return whether a stop signal ends the run here.

        Long work comes last, after the checkpoint, and at the last step after the finished model.
        """
        # check and save
        stopping = self.stop.agreed()
        due = self.due()
        if due["log"] or due["check"] or due["save"]:
            self.engine.check_finite(self.step)
        if due["save"] or stopping:
            self.save()
        if self.step == self.max_steps:
            self.save_model()
        # log, evaluate and draw
        self.report()
        return self.drawn(stopping)

    def drawn(self, stopping: bool) -> bool:
        """Draw the sample grid if it is due; return whether to stop, now that this step is saved."""
        if not self.due()["sample"]:
            return stopping
        if self.main:
            self.draw()
        if stopping := self.stop.agreed():
            self.save()
        return stopping

    def catch_up(self) -> bool:
        """Do the work that was cut off after the checkpoint that was resumed from; return whether to stop."""
        # do the whole step whose line of the log was cut off
        line = agree(self.log.last)
        if line.get("step") != self.step:
            return self.after_step()
        # do the model or the grid that was cut off
        if self.engine.recipe.guard is not None:                     # the checkpoint is older than this line
            self.guarded, _ = self.engine.recipe.guard(self.guarded, line)
        if "learning_rate" in line:                                  # these averages are written already
            self.engine.fetch()
        if self.step == self.max_steps:
            self.save_model()
        return self.stop.agreed() if self.grid().exists() else self.drawn(False)

    def report(self) -> None:
        """Write this step's line of the log where it is due, and let the guard see it.

        An evaluation that a stop signal ends leaves no line: it is made and written when the run is resumed.
        """
        # collect evaluation and averages
        due = self.due()
        numbers: dict[str, float] | None = {}
        if due["sample"]:
            numbers = self.evaluated()
        if numbers is None:
            self.unfinished = True
        elif due["log"]:
            numbers = {**self.engine.fetch(), "learning_rate": self.learning_rate, **numbers}
        # write the line, and show it to the guard
        self.reported = numbers or {}
        if numbers:
            self.log.write(self.step, numbers)
            self.watch(numbers)

    def evaluated(self) -> dict[str, float] | None:
        """Return the numbers of the recipe's evaluation, {} of one without; None where a stop signal ended it."""
        # evaluate in the main process
        numbers: dict[str, float] | None = None
        if self.engine.recipe.evaluate is None:
            return {}
        if self.main:
            with suppress(Interrupted), self.beside("evaluating"), networks_in_use(self.engine, self.stop) as nets:
                numbers = self.engine.recipe.evaluate(nets)
        # hand the numbers to all processes
        numbers = agree(numbers)
        self.numbers = numbers or self.numbers
        return numbers

    def draw(self) -> None:
        """Write the sample grid of this step; a stop signal ends it, and there is none."""
        with suppress(Interrupted), self.beside("preview"), networks_in_use(self.engine, self.stop) as nets:
            picture = draw(self.engine, nets, progress=True)
            if picture is not None:
                self.written(lambda: write_picture(picture, self.grid()))
                track_picture(self.accelerator, picture, self.step)

    def grid(self) -> Path:
        """Return the path of this step's sample grid."""
        return self.folder / "samples" / f"step-{self.step:08d}.png"

    @contextmanager
    def beside(self, text: str) -> Iterator[None]:
        """Show `text` while the block runs, and do not count its time as training."""
        before = time.monotonic()
        try:
            with self.log.doing(text):
                yield
        finally:
            self.aside += time.monotonic() - before

    def watch(self, numbers: dict[str, float]) -> None:
        """Warn where the recipe's guard sees trouble begin; with `stop_on_collapse` save and raise CollapseError."""
        # ask the guard
        if self.engine.recipe.guard is None:
            return
        self.guarded, warning = self.engine.recipe.guard(self.guarded, {"step": self.step, **numbers})
        if warning is None:
            return
        # warn, or stop
        self.log.say(f"warning: step {self.step:,}: {warning}")
        if getattr(self.settings, "stop_on_collapse", False):
            self.save()
            raise CollapseError(f"stopped at step {self.step:,}: {warning}")

    def due(self) -> dict[str, bool]:
        """Return whether this step is one of a log, a look at non-finite steps, a grid, a checkpoint; the last is."""
        s, last = self.settings, self.step == self.max_steps
        every = {"log": s.log_every, "check": CHECK_EVERY, "sample": s.sample_every, "save": s.save_every}
        return {name: last or (bool(steps) and self.step % steps == 0) for name, steps in every.items()}

    def save(self) -> None:
        """Write a checkpoint of this step; all processes wait until it is there."""
        # collect the state of the run beside tensors
        engine = self.engine
        now = {
            "step": self.step,
            "dataset": engine.dataset.fingerprint,
            "settings": json.loads(json.dumps(dataclasses.asdict(self.settings), default=str)),
            "log": engine.log.state(self.accelerator),
            "guard": self.guarded,
            "seconds": self.seconds(),
            "loss_scale": {name: scale.state() for name, scale in engine.scales.items()},
        }
        # write the checkpoint, and the record beside it
        if self.main and self.saved != self.step:
            with self.beside("saving"):
                self.written(lambda: checkpoint.save(
                    self.folder / "checkpoints", self.step,
                    lambda folder: state.save(folder, engine.recipe, engine.nets, engine.averages, now),
                    self.about(), self.settings.keep_checkpoints,
                ))  # fmt: skip
            self.record(now["seconds"])
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def resume(self, stored: Path) -> int:
        """Put the engine into the state of the checkpoint `stored`; return its step. Raises CheckpointError."""
        engine = self.engine
        # check that it is the same run on the same data
        then = state.read_state(stored)
        check_same(self.settings, then["settings"], self.folder)
        before = str(then.get("dataset"))
        if before != engine.dataset.fingerprint:
            raise CheckpointError(
                f"{self.folder}: the dataset {engine.dataset.name!r} is not the one this run was trained on "
                f"(fingerprint {engine.dataset.fingerprint[:12]}, was {before[:12]}). Use it, or a new folder."
            )
        if then["step"] > self.max_steps:
            raise CheckpointError(f"{stored}: is beyond --max-steps {self.max_steps}; ask for more steps")
        # restore networks, optimisers, averages, log and guard
        state.restore(stored, engine.recipe, engine.nets, engine.averages)
        engine.set_learning_rates(then["step"] - 1, self.max_steps)
        engine.log.restore(then["log"], engine.device)
        for name, scale in engine.scales.items():
            scale.restore(then["loss_scale"][name])
        self.guarded = then.get("guard", {})
        self.before = then.get("seconds")
        return int(then["step"])

    def seconds(self) -> float | None:
        """Return the seconds that this run has trained, all sessions together; None where one did not count them."""
        return None if self.before is None else self.before + time.monotonic() - self.began

    def about(self) -> dict[str, Any]:
        """Return the facts besides settings that a checkpoint's exactness depends on."""
        processes = self.accelerator.num_processes
        return {"versions": record.versions(), "processes": processes, "threads": self.threads}

    def save_model(self) -> None:
        """Write the finished model."""
        if self.main:
            with self.beside("saving"):
                nets = state.served_networks(self.engine.nets, self.engine.averages)
                pipeline = self.engine.recipe.pipeline(nets)
                self.written(lambda: pipeline.save_pretrained(self.folder / "model"))

    def record(self, seconds: float | None) -> None:
        """Write the record of the run, after `seconds` of training."""
        evaluated = sorted(self.numbers)
        self.written(lambda: record.write(self.folder / "run.json", self.facts, self.step, seconds, evaluated))

    def written(self, write: Callable[[], Any]) -> None:
        """Let `write` write into the folder, with further attempts. Raises ResourceError if the disk refuses all."""
        persistent(write, self.folder)

    def finish(self) -> None:
        """Record the evaluated metrics; print where everything is, the last metrics, and warnings."""
        # write the record
        if not self.main:
            return
        if self.numbers:
            self.record(self.seconds())
        # describe metrics, time and grid
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        now = time.monotonic()
        training = (now - self.began - self.aside) / (now - self.started)
        grid = "none: left out, --resume draws it"
        if self.engine.recipe.preview is None:
            grid = "none"
        elif self.grid().exists():
            grid = str(self.grid())
        # print them, and the warnings once more
        self.log.say(
            f"finished step {self.step:,} after {now - self.started:.0f} s, {training:.0%} of them training"
            f"{': ' if metrics else ''}{metrics}\n"
            f"model    {self.folder / 'model'}\n"
            f"grid     {grid}\n"
            f"try      {self.engine.recipe.usage.format(run=self.folder)}"
        )
        for line in self.notes:
            if line.startswith("warning"):
                self.log.say(line)
