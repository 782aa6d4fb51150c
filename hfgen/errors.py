"""Every error that hfgen raises on purpose.

A message says where (path, field), what was found, what is allowed and what to do next. The command line prints the
message without a traceback and ends with the class's `exit_code`.
"""

import os
import sys
from collections.abc import Callable


class HfgenError(Exception):
    """Base of all hfgen errors; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(HfgenError, ValueError):
    """A setting, argument or configuration file has a value that cannot be used."""

    exit_code = 2


class ConfigTypeError(ConfigError, TypeError):
    """A setting or argument has the wrong type; also a `TypeError`, as callers of Python functions expect."""


class DataError(HfgenError, ValueError):
    """Data cannot be read, or is not what was asked for."""

    exit_code = 65


class CheckpointError(HfgenError):
    """No checkpoint verifies, or one does not belong to the run that wants it."""


class NonFiniteError(HfgenError, ArithmeticError):
    """Training produced NaN or infinity too many steps in a row."""


class CollapseError(HfgenError):
    """Training has collapsed, and was asked to stop where that happens; the run is saved."""


class ResourceError(HfgenError, OSError):
    """Disk, memory or permission ran out; the message says how much is needed and how much is there."""


class UnsafeContentError(HfgenError):
    """A model folder holds or asks for something that would run code: pickles, foreign classes, paths outside."""


def exit_code_of(command: Callable[[], int]) -> int:
    """Return the exit code of `command`; an HfgenError is printed without a traceback and gives its own code."""
    try:
        return command()
    except HfgenError as error:
        rank = os.environ.get("RANK", "0")
        print(f"{'' if rank == '0' else f'[process {rank}] '}error: {error}", file=sys.stderr)
        return error.exit_code
