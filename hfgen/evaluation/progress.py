"""One bar for a whole evaluation or comparison: the share of the expected time that is done, and the time left."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import nn
from tqdm import tqdm

from hfgen.logging import is_progress_bar_enabled

REFRESH = 0.5
"""Seconds between two updates of the bar."""

SAME_PACE = {"cost": "sampling"}
"""Kinds of stages that are slower than expected by the factor of another kind."""


class Progress:
    """A bar on the standard error over stages of work, updated twice a second while it is open, if it is `shown`.

    Stages are planned by kind with their expected seconds. The share that a running stage reports corrects these; when
    it ends, the ratio of measured to expected seconds corrects the planned stages of its kind.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._ahead: dict[str, deque[float]] = {}
        self._pace: dict[str, float] = {}
        self._title, self._expected, self._share, self._begun = "starting", 0.0, 0.0, time.monotonic()
        self._moved, self._end = 0.0, threading.Event()

    def plan(self, kind: str, seconds: float) -> None:
        """Add a stage of a kind with its expected seconds."""
        self._ahead.setdefault(kind, deque()).append(seconds)

    def skip(self, kind: str) -> float:
        """Remove the next stage of a kind, and return its expected seconds; 0 without such a stage."""
        planned = self._ahead.get(kind)
        return planned.popleft() * self._pace_of(kind) if planned else 0.0

    def _pace_of(self, kind: str) -> float:
        """Return the ratio of measured to expected seconds of a kind; 1 before the first measurement."""
        return self._pace.get(SAME_PACE.get(kind, kind), 1.0)

    @contextmanager
    def stage(self, kind: str, title: str) -> Iterator[None]:
        """Run the next stage of a kind inside."""
        # start the stage
        self._title, self._expected, self._share, self._begun = title, self.skip(kind), 0.0, time.monotonic()
        yield
        # measure the pace of its kind
        if self._expected:
            ratio = (time.monotonic() - self._begun) / self._expected
            self._pace[kind] = self._pace_of(kind) * ratio
        self._expected = self._share = 0.0

    def tick(self, share: float) -> None:
        """Report the share in [0, 1] of the running stage that is done."""
        self._share = share

    @property
    def left(self) -> float:
        """Return the expected seconds until all running and planned stages end."""
        # add up the running stage and the planned ones
        elapsed, share = time.monotonic() - self._begun, self._share
        running = 0.0                                                       # no stage is running
        if share:
            running = elapsed * (1 - share) / share
        elif self._expected:
            running = max(0.1 * elapsed, self._expected - elapsed)
        return running + sum(sum(planned) * self._pace_of(kind) for kind, planned in self._copied().items())

    def _copied(self) -> dict[str, list[float]]:
        """Return the planned seconds by kind, copied, since another thread may change them."""
        return {kind: list(planned) for kind, planned in list(self._ahead.items())}

    def __enter__(self) -> Self:
        self._start = self._begun = time.monotonic()
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        shown = self.shown and is_progress_bar_enabled()
        self._bar = tqdm(total=1000, desc="starting", bar_format=layout, leave=False, disable=not shown)
        self._thread = threading.Thread(target=self._update, daemon=True)
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self.shown:
            self._thread.join()
        self._bar.close()

    def _update(self) -> None:
        """Update the bar until it is closed."""
        while not self._end.wait(REFRESH):
            done, left = time.monotonic() - self._start, self.left
            self._moved = max(self._moved, done / (done + left))            # it never goes back
            self._bar.n = int(1000 * self._moved)
            self._bar.set_description_str(self._title, refresh=False)
            self._bar.set_postfix_str(f"{tqdm.format_interval(left)} left", refresh=False)
            self._bar.refresh()


@contextmanager
def each_call(networks: dict[str, nn.Module], report: Callable[[], None]) -> Iterator[None]:
    """Call `report` before each evaluation of a network inside."""
    def hook(*_: Any) -> None:
        report()

    hooks = [net.register_forward_pre_hook(hook) for net in networks.values()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
