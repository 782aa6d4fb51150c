"""The logger `hfgen`: messages of the library, and how many of them are shown.

    hfgen.logging.set_verbosity_error()                 # errors only: training is silent but for its progress bar
    hfgen.logging.disable_progress_bar()                # no bars either

Messages up to INFO go to the standard output, warnings and errors to the standard error, without disturbing a progress
bar. HFGEN_VERBOSITY in the environment (debug, info, warning, error or critical) sets the level at the start.
Default: info.
"""

import logging
import os
import sys
import warnings
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING

__all__ = [
    "CRITICAL", "DEBUG", "ERROR", "INFO", "WARNING", "disable_progress_bar", "enable_progress_bar", "get_logger",
    "get_verbosity", "is_progress_bar_enabled", "set_verbosity", "set_verbosity_debug", "set_verbosity_error",
    "set_verbosity_info", "set_verbosity_warning", "warn",
]  # fmt: skip

NAME, VARIABLE = "hfgen", "HFGEN_VERBOSITY"
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR, "critical": CRITICAL}

LIBRARIES = ("hfgen", "diffusers", "torch", "accelerate", "contextlib", "functools")
"""Modules whose lines are not the cause of a warning; the line that called them is."""

_bars = {"shown": True}


class _AboveBars(logging.Handler):
    """Prints messages above the progress bars that are open, if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < WARNING else sys.stderr
        tqdm = sys.modules.get("tqdm")                                  # without it no bar is open
        try:
            if tqdm is None:
                print(self.format(record), file=stream)
            else:
                tqdm.tqdm.write(self.format(record), file=stream)
        except Exception:
            self.handleError(record)


def get_logger(name: str | None = None) -> logging.Logger:
    """Return the logger `hfgen`, or the one `hfgen.NAME` below it, whose messages the first one prints."""
    root = logging.getLogger(NAME)
    if not root.handlers:
        root.addHandler(_AboveBars())
        root.setLevel(LEVELS.get(os.environ.get(VARIABLE, "info").lower(), INFO))
        root.propagate = False
    return root if name in (None, NAME) else logging.getLogger(f"{NAME}.{str(name).removeprefix(f'{NAME}.')}")


def get_verbosity() -> int:
    """Return the level of the logger: DEBUG 10, INFO 20, WARNING 30, ERROR 40 or CRITICAL 50."""
    return get_logger().getEffectiveLevel()


def set_verbosity(level: int) -> None:
    """Set the level below which messages are not shown, such as `hfgen.logging.WARNING`."""
    get_logger().setLevel(level)


def set_verbosity_debug() -> None:
    """Show all messages."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Show messages on the course of the work, warnings and errors. This is the default."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings and errors only."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Show errors only."""
    set_verbosity(ERROR)


def enable_progress_bar() -> None:
    """Show progress bars. This is the default."""
    _bars["shown"] = True


def disable_progress_bar() -> None:
    """Show no progress bars."""
    _bars["shown"] = False


def is_progress_bar_enabled() -> bool:
    """Return whether progress bars are shown."""
    return _bars["shown"]


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning whose place is the line that called hfgen, not a line of hfgen or of the libraries below it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def print_warnings_in_one_line() -> None:
    """Print warnings from now on as one line of the command line, `warning: MESSAGE`, without a line of source."""
    warnings.formatwarning = lambda message, *place, **source: f"warning: {message}\n"
