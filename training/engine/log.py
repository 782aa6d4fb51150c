"""Where a run writes its numbers: metrics.jsonl, the progress bar and trackers."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from hfgen.loading.devices import widest
from hfgen.loading.disk import append_line, persistent, write_text
from hfgen.logging import get_logger, is_progress_bar_enabled, warn
from hfgen.runs import complete_lines, numbers_of

logger = get_logger("training")

BEAT = 5.0
"""Seconds after which a progress bar is shown again although nothing has moved but its clock."""


class Beat:
    """Shows a progress bar again every few seconds, from a thread of its own, so that no long step is silent."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self._bar, self._ended = bar, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(BEAT):
            self._bar.refresh()

    def close(self) -> None:
        """End the thread, then the bar."""
        self._ended.set()
        self._thread.join()
        self._bar.close()


@contextmanager
def activity(text: str, main: bool) -> Iterator[None]:
    """Show `text` and a clock while the block runs, on the main process only."""
    beat = Beat(tqdm(desc=text, bar_format="{desc} {elapsed}", leave=False, disable=not _is_shown(main)))
    try:
        yield
    finally:
        beat.close()


def _is_shown(main: bool) -> bool:
    """Return whether this process shows progress bars."""
    return main and is_progress_bar_enabled()


class Averages:
    """Running means of scalars that stay on the device until they are fetched."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: dict[str, torch.Tensor]) -> None:
        """Add one observation of each 0-dim scalar; nothing is fetched."""
        for name, value in scalars.items():
            value = value.detach().to(widest(value.device))
            if name in self.sums:
                value = self.sums[name] + value
            self.sums[name] = value
            self.counts[name] = self.counts.get(name, 0) + 1

    def fetch(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes since the last fetch, and reset them."""
        values = self.state(accelerator)
        self.sums, self.counts = {}, {}
        return {name: total / count for name, (total, count) in values.items()}

    def state(self, accelerator: Accelerator) -> dict[str, tuple[float, int]]:
        """Return (sum averaged over processes, count) of each scalar, for a checkpoint."""
        if not self.sums:
            return {}
        totals = accelerator.reduce(torch.stack(list(self.sums.values())), reduction="mean").cpu().tolist()
        return {name: (total, self.counts[name]) for name, total in zip(self.sums, totals, strict=True)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from the numbers that `state` returned."""
        self.sums, self.counts = {}, {}
        for name, (total, count) in state.items():
            self.sums[name] = torch.tensor(total, dtype=widest(device), device=device)
            self.counts[name] = count


class Log:
    """Writes one JSON object a line to metrics.jsonl (cut back to `step` first), the progress bar, and trackers."""

    def __init__(self, path: Path, accelerator: Accelerator, step: int, max_steps: int):
        self.accelerator, self.path = accelerator, path
        main = accelerator.is_main_process
        self._bar = tqdm(total=max_steps, initial=step, unit="step", dynamic_ncols=True, disable=not _is_shown(main))
        self._beat = Beat(self._bar)
        self.last: dict[str, Any] = self._cut(step) if main else {}

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Show on the progress bar the activity beside training while the block runs."""
        self._bar.set_description_str(text)
        try:
            yield
        finally:
            self._bar.set_description_str("", refresh=False)

    def _cut(self, step: int) -> dict[str, Any]:
        """Drop lines that lie after `step`, which the resumed run writes again; return the last that stays.

        Lines without a step are dropped with a warning.
        """
        # keep the lines up to the step
        kept, broken, last = list[str](), 0, dict[str, Any]()
        for line in complete_lines(self.path):
            numbers = numbers_of(line)
            if numbers is None:
                broken += 1
            elif numbers["step"] <= step:
                kept.append(line)
                last = numbers
        # warn of others, and write
        if broken:
            warn(f"{self.path}: dropped {broken:,} lines that are no JSON object with a step")
        persistent(lambda: write_text(self.path, "".join(kept)), self.path.parent)
        return last

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line of numbers; NaN and infinities become null, which JSON has."""
        if not self.accelerator.is_main_process:
            return
        # append to the file
        line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        persistent(lambda: append_line(self.path, json.dumps(line)), self.path.parent)
        # update the progress bar and the tracker
        losses = {name: f"{value:.4f}" for name, value in values.items() if name.startswith("loss")}
        self._bar.set_postfix(losses, refresh=False)
        if self.accelerator.trackers:
            self.accelerator.log(values, step=step)

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on one process only."""
        if self.accelerator.is_main_process:
            logger.info(text)

    def close(self) -> None:
        """Leave the progress bar as it is and go to the next line."""
        self._beat.close()
