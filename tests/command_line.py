"""The command line in this process, as a user types it."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from hfgen.cli import main


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code and everything that it printed."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Return the standard output, then the standard error."""
        return self.stdout + self.stderr


def hfgen(*words: object) -> Ended:
    """Run `hfgen WORDS`; any exception but the exit is raised."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Ended(code, stdout.getvalue(), stderr.getvalue())
