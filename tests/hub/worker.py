"""A process in which many commands run one after the other, so that the libraries are imported once."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hub.standin import HURRY, ROOT, TOKEN, Standin, client_environment

WORKER = """
import json, os, sys, traceback
from tests import command_line

for line in sys.stdin:
    task, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    if isinstance(task, str):
        scope = {}
        exec(task, scope)
        answer = scope["answer"]
    else:
        try:
            done = command_line.hfgen(*task)
            answer = {"code": done.exit_code, "out": done.stdout, "err": done.stderr}
        except Exception:
            traceback.print_exc()
            answer = {"code": 1, "out": "", "err": ""}
    print("answer", json.dumps(answer), flush=True)
"""
Ask = Callable[..., Any]


@contextmanager
def worker(hub: Standin, home: Path) -> Iterator[Ask]:
    """Yield `ask(task, token=TOKEN, code=0)`, which runs `task` where `hub` is the Hub and `home` the cache.

    `task`: words after `hfgen`, whose output it returns, with errors and warnings. They must end with `code`, and an
    error must be one line, the last. Or code in Python, whose `answer` it returns. Nowhere may the token be printed.
    """
    with open(home / "stderr", "w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", HURRY + WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            text=True, cwd=ROOT, env=client_environment(hub, home, None, offline=False),
        )  # fmt: skip

    def ask(task: list[Any] | str, token: str | None = TOKEN, code: int = 0) -> Any:
        assert process.stdin and process.stdout
        words = task if isinstance(task, str) else [str(word) for word in task]
        print(json.dumps((words, token)), file=process.stdin, flush=True)
        line = next((line for line in process.stdout if line.startswith("answer ")), "")
        assert line, (home / "stderr").read_text()
        assert TOKEN not in line
        answer = json.loads(line.removeprefix("answer "))
        if isinstance(task, str):
            return answer
        assert answer["code"] == code, f"{answer}\n{(home / 'stderr').read_text()}"
        errors = [line for line in answer["err"].splitlines() if line.startswith("error:")]
        assert len(errors) == (code != 0) and (not code or answer["err"].splitlines()[-1] == errors[0]), answer["err"]
        warnings = [line for line in answer["err"].splitlines() if line.startswith("warning:")]
        return answer["out"] + "\n".join([*warnings, *errors])

    with process:
        yield ask
        assert process.stdin
        process.stdin.close()
