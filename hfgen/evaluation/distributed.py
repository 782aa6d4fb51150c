"""Processes of one evaluation: each generates some of the samples, the first one computes, all get the result."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hfgen.errors import HfgenError

T = TypeVar("T")
Failure = tuple[type[HfgenError], str]

TIMEOUT = timedelta(days=7)
"""Time that the other processes wait for the first, which computes the metrics alone."""


class Processes:
    """The processes of this evaluation, those of `accelerate launch`: `count` of them, this one with number `rank`.

    They communicate over gloo on any device. An HfgenError in one of them is raised in all.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(timeout=TIMEOUT)
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    @property
    def first(self) -> bool:
        """Return whether this process computes, prints and writes."""
        return self.rank == 0

    def gathered(self, compute: Callable[[], T]) -> list[T] | None:
        """Return the results of `compute()` in all processes, by rank, in the first process; None in the others."""
        if self.count == 1:
            return [compute()]
        # raise an error of one process in all
        result, failure = _attempted(compute)
        failures: list[Any] = [None] * self.count
        dist.all_gather_object(failures, failure, group=self._group)
        _raise_first(failures)
        # gather the results
        results: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(result, results, dst=0, group=self._group)
        return results

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return the result of `compute()` in the first process, in all of them; the others do not call it."""
        if self.count == 1:
            return compute()
        outcome: list[Any] = list(_attempted(compute)) if self.first else [None, None]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        _raise_first(outcome[1:])
        result: T = outcome[0]
        return result


def is_first() -> bool:
    """Return whether this process prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def finish() -> None:
    """Wait for all processes: one that ends early would abort the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _attempted(compute: Callable[[], T]) -> tuple[T | None, Failure | None]:
    """Return the result of `compute()`, or the HfgenError that it raised."""
    try:
        return compute(), None
    except HfgenError as error:
        return None, (type(error), str(error))


def _raise_first(failures: list[Failure | None]) -> None:
    """Raise the first error, if there is one."""
    for failure in failures:
        if failure is not None:
            kind, message = failure
            raise kind(message)
