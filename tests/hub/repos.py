"""Repositories as a Hub keeps them, in memory: blobs, commits, branches and tags; and what is asked of a card."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".ckpt", ".arrow", ".npz", ".npy", ".zip", ".gz")
START = {".gitattributes": b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % s.encode() for s in LFS_SUFFIXES)}
"""What the first commit of every repository holds."""


class Refusal(Exception):
    """An answer that is an error: its status, the code in `X-Error-Code` and the words in `X-Error-Message`."""

    def __init__(self, status: int, code: str = "", message: str = "", body: Any = None) -> None:
        super().__init__(f"{status} {code} {message}")
        self.status, self.code, self.message = status, code, message
        self.body = {"error": message or code} if body is None else body


@dataclass(frozen=True)
class Blob:
    """One file's content, and whether it is kept as a large one (LFS)."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        """Return the hash of large files."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Return git's hash: of the content, and of a pointer to it for a large file."""
        content = f"sha256:{self.sha256}".encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        """Return the hash that a download is kept under."""
        return self.sha256 if self.lfs else self.oid

    def described(self) -> dict[str, Any]:
        """Return size, hash and the large file's own, as in a listing."""
        size = len(self.content)
        lfs = {"lfs": {"oid": self.sha256, "size": size, "pointerSize": 134}} if self.lfs else {}
        return {"size": size, "oid": self.oid, **lfs}


@dataclass(frozen=True)
class Commit:
    """A state of a repository, and how it came about."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, Blob]


def is_large(path: str, sample: bytes, size: int) -> bool:
    """Return whether a file goes through LFS: by its name, for binary content, and from 10 MB on."""
    return path.endswith(LFS_SUFFIXES) or b"\0" in sample or size > 10 * 2**20


@dataclass
class Repo:
    """A repository: every commit, branches and tags; `gated` ones show their listing and keep their files."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    history: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {path: Blob(content, False) for path, content in START.items()}, title="initial commit")

    def at(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag or a commit hash."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.history:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.history[oid]

    def file(self, revision: str, path: str) -> tuple[Commit, Blob]:
        """Return one file at a revision, and its commit."""
        commit = self.at(revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        return commit, commit.files[path]

    def commit(
        self, branch: str, added: dict[str, Blob], deleted: tuple[str, ...] = (), title: str = "", parent: str = ""
    ) -> Commit:
        """Return the new head of `branch`; a folder in `deleted` ends in a slash. `parent`, if given, must be head."""
        head = self.history[self.branches[branch]] if branch in self.branches else None
        if head is None and self.history:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        if parent and (head is None or head.oid != parent):
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        kept = dict(head.files) if head else {}
        for path in deleted:
            gone = [name for name in kept if name == path or (path.endswith("/") and name.startswith(path))]
            if not gone:
                raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
            kept = {name: blob for name, blob in kept.items() if name not in gone}
        number = f"{self.kind} {self.id} {branch} {len(self.history)} {title}"
        oid = hashlib.sha1(number.encode()).hexdigest()
        new = Commit(oid, head.oid if head else None, title, {**kept, **added})
        self.history[oid], self.branches[branch] = new, oid
        return new

    def log(self, revision: str) -> list[Commit]:
        """Return the commits up to a revision, the newest first."""
        found: list[Commit] = [self.at(revision)]
        while parent := found[-1].parent:
            found.append(self.history[parent])
        return found

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Return files and folders below `folder`."""
        start = f"{folder}/" if folder else ""
        below = {path: blob for path, blob in self.at(revision).files.items() if path.startswith(start)}
        if folder and not below:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        folders = {path[: i] for path in below for i in range(len(start), len(path)) if path[i] == "/"}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        entries += [{"type": "file", "path": path, **blob.described()} for path, blob in below.items()]
        deep = [entry for entry in entries if recursive or "/" not in entry["path"][len(start):]]
        return sorted(deep, key=lambda entry: entry["path"])

    def info(self, revision: str, blobs: bool) -> dict[str, Any]:
        """Return what a model's or dataset's page knows of itself."""
        commit = self.at(revision)
        siblings = []
        for path, blob in sorted(commit.files.items()):
            size = {"size": len(blob.content), "blobId": blob.oid}
            lfs = {"size": size["size"], "sha256": blob.sha256, "pointerSize": 134}
            siblings.append({"rfilename": path, **((size | ({"lfs": lfs} if blob.lfs else {})) if blobs else {})})
        card = commit.files.get("README.md")
        data = front_matter(card.content.decode()) if card else None
        return {
            "id": self.id, "sha": commit.oid, "private": self.private, "gated": "manual" if self.gated else False,
            "disabled": False, "tags": [], "siblings": siblings, "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z", **({"cardData": data} if isinstance(data, dict) else {}),
        }


def front_matter(card: str) -> Any:
    """Return what stands between the two lines `---` at the top of a card; None where nothing does."""
    lines = card.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return None
    end = [line.strip() for line in lines].index("---", 1)
    return yaml.safe_load("\n".join(lines[1:end]))


def card_errors(card: str) -> tuple[list[str], list[str]]:
    """Return errors and warnings about a card's metadata, after the Hub's rules for the fields that matter here."""
    try:
        data = front_matter(card)
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["metadata must be an object"], []
    errors = [f'"{key}" must be a string' for key in ("license", "library_name", "pipeline_tag")
              if key in data and not isinstance(data[key], str)]
    for key in ("tags", "datasets", "language"):
        value = data.get(key, [])
        listed = value if isinstance(value, list) else [value]
        errors += [f'"{key}" must be strings'] * any(not isinstance(one, str) for one in listed)
    return errors + _result_errors(data.get("model-index", [])), []


def _result_errors(index: Any) -> list[str]:
    """Return what is wrong with `model-index`: each has a name and results of a task, a dataset and metrics."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"model-index[{i}].name" is required')
        for j, result in enumerate(model.get("results", []) if isinstance(model, dict) else []):
            where = f"model-index[{i}].results[{j}]"
            required = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            errors += [f'"{where}.{a}.{b}" is required' for a, b in required
                       if not isinstance(result.get(a, {}).get(b), str)]
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                errors.append(f'"{where}.metrics" must be a non-empty array')
            elif any(not isinstance(m, dict) or "type" not in m or "value" not in m for m in metrics):
                errors.append(f'"{where}.metrics" must have a type and a value')
    return errors
