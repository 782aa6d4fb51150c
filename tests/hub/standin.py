"""A stand-in Hub on the loopback, which the real `huggingface_hub` client uploads to and downloads from over HTTP.

    with Standin() as hub:                                        # or the fixture `hub` of tests/hub/conftest.py
        hub.put("user/model", folder_or_{path: bytes})            # a commit; private=, gated=, kind="dataset"
        hub.tag("user/model", "v1"); hub.branch("user/model", "dev")
        hub.fail("POST .*/commit/", status=500, nth=1, times=1)   # the n-th request like this, and the next times - 1
        hub.cut("GET .*safetensors", at=0.5)                      # the connection ends in the middle of a body
        hub.before("GET .*config.json", lambda: hub.put(...))     # something happens just before the answer
        client = run_client(hub, "import hfgen ...", tmp_path, token=TOKEN)          # Python in a process of its own
        client = run_client(hub, ["publish", "runs/a", "user/model"], tmp_path)      # hfgen's command line
        client.stdout, client.stderr                              # fails, with stderr, unless exit_code (0) comes back
        hub.files("user/model", "main")                           # {path: bytes}; with .gitattributes of the start
        hub.commits("user/model")                                 # the newest first: .oid, .parent, .title, .files
        hub.repo("user/model").private; hub.seen("PUT /storage/") # requests: .method .path .authorised .status

A pattern is a regular expression searched in "METHOD /path?query". Large files (safetensors, parquet, anything binary)
go up through LFS: PUT /storage/SHA256?of=user/model. The owner of a name is who has it as token in `tokens`.
"""

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from tests.hub.faults import Fault, Request
from tests.hub.handler import Handler
from tests.hub.repos import Blob, Commit, Refusal, Repo, is_large

ROOT = Path(__file__).resolve().parents[2]
USER, TOKEN = "user", "hf_canary_of_the_tests"

HURRY = """
import time
_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.01))
"""
"""The client waits up to 8 s before it asks again; here it does not."""

WITHOUT_HFGEN = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@dataclass
class Standin:
    """A Hub in this process, from `with` on; see the top of the file."""

    tokens: dict[str, str] = field(default_factory=lambda: {TOKEN: USER})
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        if self.errors:
            raise self.errors[0]

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        """Return a repository; Refusal where there is none."""
        if (kind, repo_id) not in self.repos:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, repo_id]

    def put(
        self, repo_id: str, files: dict[str, bytes] | Path, *, private: bool = False, gated: bool = False,
        kind: str = "model", branch: str = "main", deleted: tuple[str, ...] = (), title: str = "from outside",
    ) -> str:
        """Return the commit that adds `files` to a repository, which is made if it is not there."""
        if isinstance(files, Path):
            found = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
            files = {name: path.read_bytes() for name, path in found.items()}
        blobs = {path: Blob(content, is_large(path, content[:512], len(content))) for path, content in files.items()}
        with self.lock:
            repo = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id, private, gated))
            self.objects |= {blob.sha256: blob.content for blob in blobs.values() if blob.lfs}
            return repo.commit(branch, blobs, deleted, title).oid

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Return every file of a revision."""
        return {path: blob.content for path, blob in self.repo(repo_id, kind).at(revision).files.items()}

    def commits(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """Return the commits of a revision, the newest first."""
        return self.repo(repo_id, kind).log(revision)

    def tag(self, repo_id: str, name: str, revision: str = "main", kind: str = "model") -> None:
        """Give a commit a name."""
        repo = self.repo(repo_id, kind)
        repo.tags[name] = repo.at(revision).oid

    def branch(self, repo_id: str, name: str, revision: str = "main", kind: str = "model") -> None:
        """Start a branch at a commit."""
        repo = self.repo(repo_id, kind)
        repo.branches[name] = repo.at(revision).oid

    def fail(
        self, pattern: str, *, status: int = 500, nth: int = 1, times: int = 1, code: str = "", message: str = ""
    ) -> None:
        """Answer the n-th request that matches `pattern`, and the `times - 1` after it, with an error."""
        self.faults.append(Fault(pattern, nth, nth + times - 1, status=status, code=code, message=message))

    def cut(self, pattern: str, *, at: float = 0.5, nth: int = 1, times: int = 1) -> None:
        """End the connection of the n-th request that matches, after a share `at` of the body, theirs or ours."""
        self.faults.append(Fault(pattern, nth, nth + times - 1, cut=at))

    def before(self, pattern: str, action: Callable[[], object], *, nth: int = 1, times: int = 1) -> None:
        """Call `action` just before the n-th request that matches is answered."""
        self.faults.append(Fault(pattern, nth, nth + times - 1, action=action))

    def seen(self, pattern: str = "") -> list[Request]:
        """Return the requests that matched, in their order."""
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]


def client_environment(hub: Standin | None, home: Path, token: str | None, offline: bool) -> dict[str, str]:
    """Return the environment in which a new process takes `hub` for the Hub, and `home` for its cache."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HUB_CACHE")}
    return {
        **inherited, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0", "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1", **({"HF_ENDPOINT": hub.url} if hub else {}), **({"HF_TOKEN": token} if token else {}),
    }  # fmt: skip


def run_client(
    hub: Standin | None,
    program: str | list[str],
    tmp_path: Path,
    *arguments: object,
    token: str | None = None,
    offline: bool = False,
    without_hfgen: bool = False,
    exit_code: int = 0,
    home: str = "home",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Return how a Python of its own ran `program`: code, with `sys.argv[1:]` = `arguments`, or words after `hfgen`.

    Its Hub is `hub`, its cache `tmp_path / home` (the same in each call), its folder the repository's, or `tmp_path`
    `without_hfgen`, where hfgen cannot be imported. The test fails, showing stderr, for another exit code.
    """
    if isinstance(program, list):
        arguments, program = tuple(program), "from hfgen.cli import main\nmain()\n"
    settings = client_environment(hub, tmp_path / home, token, offline) | environment
    code = HURRY + (WITHOUT_HFGEN if without_hfgen else "") + textwrap.dedent(program)
    command = [sys.executable, *(["-I"] if without_hfgen else []), "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=settings, cwd=tmp_path if without_hfgen else ROOT
    )
    if done.returncode != exit_code:
        pytest.fail(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done
