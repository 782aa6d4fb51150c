"""Several processes that judge together: each makes its share of the samples, the first one computes, all know."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hfgen.errors import HfgenError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long the others wait for the first process, which computes alone what does not divide."""


class Processes:
    """The processes of this evaluation, `count` of them, this one being number `rank`: those of `accelerate launch`.

    They talk over gloo whatever their devices. An HfgenError in one of them is raised in all.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(timeout=PATIENCE)
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Return whether this is the process that computes, prints and writes."""
        return self.rank == 0

    def gathered(self, make: Callable[[], T]) -> list[T] | None:
        """Return what `make()` gave in every process, in the order of ranks, in the first; None in the others."""
        if self.count == 1:
            return [make()]
        made, error = _attempted(make)
        errors: list[Any] = [None] * self.count
        dist.all_gather_object(errors, error, group=self._group)
        _raise_first(errors)
        found: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(made, found, dst=0, group=self._group)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make()` gives in the first process, in all of them; the others do not call it."""
        if self.count == 1:
            return make()
        answer: list[Any] = list(_attempted(make)) if self.first else [None, None]
        dist.broadcast_object_list(answer, src=0, group=self._group)
        _raise_first(answer[1:])
        found: T = answer[0]
        return found


def is_first() -> bool:
    """Return whether this is the process that prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def finish() -> None:
    """Let all processes end together: one that left early would abort the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _attempted(make: Callable[[], T]) -> tuple[T | None, tuple[type[HfgenError], str] | None]:
    try:
        return make(), None
    except HfgenError as error:
        return None, (type(error), str(error))


def _raise_first(errors: list[tuple[type[HfgenError], str] | None]) -> None:
    for found in errors:
        if found is not None:
            raise found[0](found[1])
