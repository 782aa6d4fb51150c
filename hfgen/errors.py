"""Errors of hfgen.

A message names the place (path, field), the value found, the values allowed, and the next step. The command line prints
the message without a traceback and ends with the class's `exit_code`.
"""

import os
import sys
from collections.abc import Callable
from typing import Any


class HfgenError(Exception):
    """Base of all hfgen errors; `exit_code` is the exit code of the command line."""

    exit_code = 1


class ConfigError(HfgenError, ValueError):
    """A setting, argument or configuration file has a value that cannot be used."""

    exit_code = 2


class ConfigTypeError(ConfigError, TypeError):
    """A setting or argument has the wrong type; also a `TypeError`, as callers of Python functions expect."""


class DataError(HfgenError, ValueError):
    """Data cannot be read, or do not fit the request."""

    exit_code = 65


class CheckpointError(HfgenError):
    """No checkpoint verifies, or a checkpoint belongs to another run."""


class NonFiniteError(HfgenError, ArithmeticError):
    """Training produced NaN or infinity too many steps in a row."""


class CollapseError(HfgenError):
    """Training has collapsed, and the settings request a stop; the run is saved."""


class ResourceError(HfgenError, OSError):
    """Disk, memory or permission is missing; the message states how much is needed and available."""


class UnsafeContentError(HfgenError):
    """A model folder holds something that would run code: pickles, unknown classes, paths outside the folder."""


def exit_code_of(command: Callable[..., int], *arguments: Any) -> int:
    """Return the exit code of `command(*arguments)`; an HfgenError is printed in one line and gives its own code."""
    try:
        return command(*arguments)
    except HfgenError as error:
        rank = os.environ.get("RANK", "0")
        print(f"{'' if rank == '0' else f'[process {rank}] '}error: {error}", file=sys.stderr)
        return error.exit_code
