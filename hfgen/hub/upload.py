"""Upload of a folder as one commit of a repository on the Hub, verified by download.

The token is that of `hf auth login` or HF_TOKEN. Errors of the Hub's client become one line with the next step.
"""

import filecmp
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetInfo,
    HfApi,
    ModelInfo,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from hfgen.cards.metadata import CARD
from hfgen.checks import HUB_ID, check_repo_id
from hfgen.errors import CheckpointError, ConfigError, HfgenError, ResourceError, UnsafeContentError
from hfgen.loading.resolve import HubOptions, download, readable_files, variants_of

TEMPORARY = "hfgen-publish-"
TEXT_FILES = (".json", ".md", ".py", ".txt")

NOT_YOURS = "the name may be someone else's, the token invalid, expired or read-only"
"""Meaning of a 401, 403 or 404 response to an upload."""


@dataclass(frozen=True)
class Destination:
    """Place of a commit on the Hub: the model repository `repo_id`, owner/name, private unless `public`.

    `token`: access token. Default: that of `hf auth login` or HF_TOKEN. `revision`: branch, created if it does not
    exist. Default: the main branch. `create_pr`: the commit is a pull request.
    """

    repo_id: str
    public: bool = False
    token: str | None = None
    revision: str | None = None
    create_pr: bool = False

    @classmethod
    def of(
        cls, name: str, token: str | None, private: bool | None, revision: str | None, create_pr: bool
    ) -> "Destination":
        """Return the destination for the arguments of `push_to_hub`; a name without an owner is the user's own."""
        if HUB_ID.fullmatch(f"user/{name}"):
            require_login(token)
            with explained(name):
                name = f"{HfApi(token=token).whoami()['name']}/{name}"
        check_repo_id(name)
        return cls(name, private is False, token, revision, create_pr)


@dataclass(frozen=True)
class Published:
    """A published commit `oid` of `repo_id`; `changed`: whether the commit is new; `pr_url`: of its pull request."""

    repo_id: str
    oid: str
    commit_url: str
    changed: bool
    public: bool
    pr_url: str | None = None

    def __str__(self) -> str:
        repository = f"{self.repo_id} ({'public' if self.public else 'private'})"
        result = f"published {repository}"
        if not self.changed:
            result = f"unchanged {repository}, no new commit"
        if self.pr_url is not None:
            result += f"\nrequest   {self.pr_url}"
        return f"{result}\ncommit    {self.commit_url}\nread back at this commit: every bit is the same"


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub at the time it was opened: its newest commit `head`, and the names of its `files`.

    `place`: its name, its visibility, the branch that was opened, and the token.
    """

    place: Destination
    kind: Literal["model", "dataset"]
    head: str
    files: frozenset[str]

    @property
    def name(self) -> str:
        """Return owner/name."""
        return self.place.repo_id

    def fetch(self, file: str, cache_dir: Path) -> Path | None:
        """Return a local copy of `file` at `head`; None if the repository has no such file."""
        if file not in self.files:
            return None
        with explained(self.name):
            return Path(hf_hub_download(
                self.name, file, repo_type=self.kind, revision=self.head, cache_dir=cache_dir, token=self.place.token
            ))


def logged_in() -> bool:
    """Return whether the Hub's client finds a token; no request is sent."""
    return get_token() is not None


def require_login(token: str | None = None) -> None:
    """Raise ConfigError if there is no token, neither `token` nor a stored one."""
    if not (token or logged_in()):
        raise ConfigError("not logged in to the Hub; run `hf auth login`, or set HF_TOKEN to a token that may write")


def open_repository(place: Destination, kind: Literal["model", "dataset"] = "model") -> Repository:
    """Return the repository at `place`, created with its branch if it does not exist: private unless `place.public`.

    Raises ConfigError if an existing repository has another visibility.
    """
    # open the repository, or create it
    name = place.repo_id
    check_repo_id(name)
    require_login(place.token)
    api = HfApi(token=place.token)
    with explained(name):
        api.create_repo(name, repo_type=kind, private=not place.public, exist_ok=True)
        if place.revision is not None and not place.revision.startswith("refs/"):
            api.create_branch(name, repo_type=kind, branch=place.revision, exist_ok=True)
        info = api.repo_info(name, repo_type=kind, revision=place.revision)
    assert isinstance(info, ModelInfo | DatasetInfo)
    # compare its visibility
    if not place.public and not info.private:
        raise ConfigError(f"{name}: exists and is public; if it is yours, add --public to publish in it (private=False "
                          "in Python), otherwise choose another name")
    if place.public and info.private:
        raise ConfigError(f"{name}: exists and is private; leave --public out, or make it public first in its settings "
                          "on the Hub")
    # read its commit and its files
    if info.sha is None:
        raise ResourceError(f"{name}: the Hub names no commit of it")
    return Repository(place, kind, info.sha, frozenset(file.rfilename for file in info.siblings or []))


def commit_folder(repository: Repository, folder: Path, message: str, stale: Iterable[str] = ()) -> Published:
    """Return the one commit that adds every file of `folder` to the repository and deletes the `stale` ones.

    Unchanged files are not uploaded again; if all are unchanged, there is no commit. Raises UnsafeContentError if a
    file holds the user's token, ResourceError if another commit was made since the repository was opened.
    """
    # files to add and to delete
    place = repository.place
    refuse_token(folder, place.token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files_of(folder)
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
    # one commit
    with explained(repository.name):
        done = HfApi(token=place.token).create_commit(
            place.repo_id, operations, commit_message=message, repo_type=repository.kind,
            revision=place.revision, parent_commit=repository.head, create_pr=place.create_pr,
        )
    changed = done.oid != repository.head
    return Published(place.repo_id, done.oid, done.commit_url, changed, place.public, done.pr_url)


def publish_folder(
    temporary: Path,
    place: Destination,
    *,
    message: str,
    describe: Callable[[Path], Path],
    stale: Callable[[Repository], Iterable[str]],
    load: Callable[[Path, str | None], object],
) -> Published:
    """Return the commit at `place` of the model in the folder `temporary / "model"`, with a card, verified by download.

    `describe(folder)` writes the card, merged with the card on the Hub; `stale(repository)` returns the files there
    that the model replaces; `load(folder, variant)` loads the downloaded files. Raises as `open_repository` and
    `commit_folder`, and CheckpointError if the downloaded files differ.
    """
    staged, cache = temporary / "model", temporary / "cache"
    # card
    repository = open_repository(place)
    if card := repository.fetch(CARD, cache):
        shutil.copyfile(card, staged / CARD)
    describe(staged)
    # commit
    done = commit_folder(repository, staged, message, stale(repository))
    # download, load and compare
    names = files_of(staged)
    try:
        for variant in variants_of(names):
            options = HubOptions(done.oid, cache_dir=cache, variant=variant, token=place.token)
            arrived = download(done.repo_id, options, alone=True)
            load(arrived, variant)
            compare(staged, arrived, readable_files(done.repo_id, names, None, variant, alone=True))
    except HfgenError as error:
        raise type(error)(f"committed as {done.oid}, but not confirmed. {error}") from error
    return done


def files_of(folder: Path) -> list[str]:
    """Return the names of all files under `folder`, relative to it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def refuse_token(folder: Path, token: str | None = None) -> None:
    """Raise UnsafeContentError if a text file in `folder` holds `token`, or that which the user is logged in with."""
    tokens = [one.encode() for one in (token, get_token()) if one]
    for name in files_of(folder):
        if name.endswith(TEXT_FILES) and any(one in (folder / name).read_bytes() for one in tokens):
            raise UnsafeContentError(f"{name} holds your access token; remove it, and renew the token on the Hub")


def compare(sent: Path, arrived: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError naming the files that differ between two folders."""
    differing = [name for name in names if not _same(sent / name, arrived / name)]
    if differing:
        raise CheckpointError(f"these files on the Hub differ from those that were sent: {', '.join(differing)}")


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def on_disk(
    model: str | Path, repo_id: str, public: bool = False, message: str | None = None, source: str | None = None
) -> str:
    """Return the sentence that everything is on disk, with the command that publishes `model` again."""
    words = ["hfgen", "publish", str(model), repo_id]
    if public:
        words.append("--public")
    for option, value in (("--message", message), ("--source", source)):
        if value:
            words += [option, value]
    return f"Everything is on disk; try again with: {shlex.join(words)}"


@contextmanager
def adding_to_errors(sentence: str) -> Iterator[None]:
    """Context that adds a sentence to the message of an HfgenError."""
    try:
        yield
    except HfgenError as error:
        raise type(error)(f"{str(error).rstrip('.')}. {sentence}") from error


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Context that turns errors of the Hub's client on `name` into an HfgenError of one line."""
    try:
        yield
    except HfgenError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _translated(name, error) from error


def _translated(name: str, error: BaseException) -> HfgenError:
    """Return the HfgenError, with the next step, for an error of the Hub's client on the repository `name`."""
    # the client wraps a failed upload
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    # responses of the Hub
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, OfflineModeIsEnabled):
        return ResourceError(f"{name}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if isinstance(error, HfHubHTTPError):
        status, message = error.response.status_code, " ".join((error.server_message or "").split())
        if status in (401, 403, 404):
            return ConfigError(f"{name}: the Hub refuses it with {status}: {NOT_YOURS}. Choose a name of your own, or "
                               "run `hf auth login` again")
        if status in (409, 412):
            return ResourceError(f"{name}: changed on the Hub while it was being uploaded")
        kind = ConfigError if status == 400 else ResourceError
        detail = f" ({message})" if message else ""
        return kind(f"{name}: the Hub answers with {status}{detail}")
    # other errors
    if isinstance(error, ValueError):
        return ConfigError(f"{name}: the Hub refuses it: {' '.join(str(error).split())}")
    return ResourceError(f"{name}: the Hub cannot be reached or cut the connection ({type(error).__name__}: {first})")
