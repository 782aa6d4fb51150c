"""Commands as processes of their own that start at once: each is forked from a server that has imported hfgen."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "hfgen.training.engine.run", "hfgen.training.denoiser", "hfgen.training.engine.latents",
    "hfgen.training.translation_evaluation",
])  # fmt: skip


class Fork:
    """The processes of one command, with the manners of `subprocess.Popen`."""

    def __init__(self, words: list[str], environment: dict[str, str], processes: int = 1) -> None:
        self.args = words
        self.returncode: int | None = None
        self.folder = tempfile.TemporaryDirectory()
        self.streams = tuple(Path(self.folder.name) / name for name in ("out", "err"))
        self.processes = []
        for rank in rank_variables(processes):
            given = (words, {**environment, **rank}, *self.streams)
            self.processes.append(SERVER.Process(target=become, args=given))
        with changed_environment(environment):                    # the server keeps it, if it has yet to start
            for process in self.processes:
                process.start()

    def poll(self) -> int | None:
        """Return the first exit code that is not 0; 0 if all processes ended well, None if not all have ended."""
        codes = [process.exitcode for process in self.processes]
        if None not in codes:
            self.returncode = next((code for code in codes if code), 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return all that was printed. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.printed()

    def printed(self) -> tuple[str, str]:
        """Return the output and the error stream so far."""
        out, err = (path.read_bytes().decode(errors="replace") if path.exists() else "" for path in self.streams)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal to every process that has not ended."""
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End what still runs and remove the files of its output."""
        self.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


def completed(words: list[str], environment: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does."""
    fork = Fork(words, environment)
    try:
        out, err = fork.communicate(timeout)
    finally:
        fork.close()
    return subprocess.CompletedProcess(words, fork.returncode or 0, out, err)


def rank_variables(processes: int) -> Iterator[dict[str, str]]:
    """Yield the variables by which a launcher tells each process its rank and where the others are; none to one."""
    if processes == 1:
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(processes):
        yield {
            "RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip


@contextlib.contextmanager
def changed_environment(environment: dict[str, str]) -> Iterator[None]:
    """Give this process another environment for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def become(words: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """Be the command in this process, with its output in files: `hfgen ...`, or the words after `python -m`."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = words
    if words[0] == "hfgen":
        from hfgen.cli import main

        main()
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
