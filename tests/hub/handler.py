"""The Hub's side of the wire: one method of `Handler` for each request of the client, and the faults before it."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from tests.hub.faults import Fault, Request, met
from tests.hub.repos import Blob, Refusal, Repo, card_errors, is_large

if TYPE_CHECKING:
    from tests.hub.standin import Standin

ID = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset)s/{ID}"
PLAIN = rf"/(?:(?P<kind>dataset)s/)?{ID}"


@dataclass
class Reply:
    """A good answer: a JSON value or bytes."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; `hub` is bound by the server."""

    hub: "Standin"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer any request."""
        request = Request(self.command, self.path, "Authorization" in self.headers)
        with self.hub.lock:
            self.hub.requests.append(request)
            faults = met(self.hub.faults, f"{self.command} {self.path}")
        try:
            self._serve(request, faults)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            self.hub.errors.append(error)
            raise

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self, request: Request, faults: list[Fault]) -> None:
        cut = next((fault.cut for fault in faults if fault.cut is not None), None)
        if cut is not None and self.command in ("POST", "PUT"):
            self.rfile.read(int(int(self.headers.get("Content-Length", 0)) * cut))
            self._hang_up()
            return
        self.content = self._read()
        for fault in faults:
            if fault.action:
                fault.action()
        try:
            if fault := next((fault for fault in faults if fault.status), None):
                raise Refusal(fault.status, fault.code, fault.message or "injected")
            with self.hub.lock:
                reply = self._answer()
        except Refusal as no:
            named = {"X-Error-Code": no.code, "X-Error-Message": no.message}
            reply = Reply(no.body, no.status, {key: value for key, value in named.items() if value})
        request.status = self._send(reply, cut)

    def _read(self) -> bytes:
        """Return the body of the request, sent in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, reply: Reply, cut: float | None) -> int:
        """Write the answer and return its status; 0 after a cut."""
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        kind = "application/octet-stream" if isinstance(reply.body, bytes) else "application/json"
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut is not None:
            self.wfile.write(body[: int(len(body) * cut)] if self.command != "HEAD" else b"")
            self._hang_up()
            return 0
        if self.command != "HEAD":
            self.wfile.write(body)
        return reply.status

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self) -> Reply:
        """Return what the first route that fits says."""
        path, _, query = self.path.partition("?")
        self.query = {key: values[-1] for key, values in parse_qs(query).items()}
        self.user = self._who()
        for method, pattern, answer in ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return answer(self, **found)
        raise Refusal(404, "", f"no route for {self.command} {path}")

    def _who(self) -> str | None:
        """Return the user whose token the request carries."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens.get(given)

    def _repo(self, kind: str, id: str, write: bool = False) -> Repo:
        """Return a repository that the user may read, or `write`; others look as if they were not there."""
        owner = id.split("/")[0] == self.user
        found = self.hub.repos.get((kind, id))
        if found is None or (found.private and not owner):
            raise Refusal(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and not owner:
            raise Refusal(403 if self.user else 401, "", "You don't have the rights to write here")
        return found

    def whoami(self) -> Reply:
        """Who has this token?"""
        if self.user is None:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return Reply({"type": "user", "id": "0", "name": self.user, "fullname": "", "orgs": [], "auth": token})

    def create(self) -> Reply:
        """Make a repository; public unless asked otherwise, as the Hub does."""
        asked = json.loads(self.content)
        kind, owner = asked.get("type") or "model", asked.get("organization") or self.user
        id = f"{owner}/{asked['name']}"
        if owner != self.user:
            raise Refusal(403 if self.user else 401, "", f"You don't have the rights to create a {kind} under {owner}")
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{id}"
        if (kind, id) in self.hub.repos:
            raise Refusal(409, "", f"You already created this {kind} repo", {"error": "exists", "url": url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[kind, id] = Repo(kind, id, private)
        return Reply({"url": url, "name": id})

    def delete(self) -> Reply:
        """Drop a repository."""
        asked = json.loads(self.content)
        kind, id = asked.get("type") or "model", f"{asked.get('organization') or self.user}/{asked['name']}"
        self._repo(kind, id, write=True)
        del self.hub.repos[kind, id]
        return Reply({})

    def settings(self, kind: str, id: str) -> Reply:
        """Make a repository private or public."""
        asked = json.loads(self.content)
        repo = self._repo(kind, id, write=True)
        repo.private = asked.get("visibility", "") == "private" or bool(asked.get("private"))
        return Reply({"private": repo.private})

    def validate(self) -> Reply:
        """Look at a card's metadata."""
        errors, warnings = card_errors(json.loads(self.content)["content"])
        body = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        if errors:
            raise Refusal(400, "", "Invalid metadata", body)
        return Reply(body)

    def preupload(self, kind: str, id: str, rev: str) -> Reply:
        """Say how each file is to come, and what is there already."""
        held = self._repo(kind, id, write=self.query.get("create_pr", "") != "1").at(rev).files
        answers = []
        for asked in json.loads(self.content)["files"]:
            large = is_large(asked["path"], base64.b64decode(asked["sample"]), asked["size"])
            old = held.get(asked["path"])
            known = {"oid": old.etag} if old else {}
            mode = "lfs" if large else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return Reply({"files": answers})

    def batch(self, id: str, kind: str = "model") -> Reply:
        """Say where large files are to be put; nothing for those stored already. A request may bring them too."""
        self._repo(kind, id)
        answers = []
        for asked in json.loads(self.content)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/storage/{asked['oid']}?of={quote(id)}", "header": {}},
                "verify": {"href": f"{self.hub.url}{self.path.replace('objects/batch', 'verify')}", "header": {}},
            }
            answers.append({**asked, **({} if asked["oid"] in self.hub.objects else {"actions": actions})})
        return Reply({"transfer": "basic", "objects": answers})

    def store(self, sha256: str) -> Reply:
        """Keep a large file, if it is the one that was announced."""
        if hashlib.sha256(self.content).hexdigest() != sha256:
            raise Refusal(400, "", "the content is not the one announced")
        self.hub.objects[sha256] = self.content
        return Reply(b"")

    def verify(self, id: str, kind: str = "model") -> Reply:
        """Compare the size of what was stored."""
        self._repo(kind, id)
        asked = json.loads(self.content)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(422, "", "the size is not the one announced")
        return Reply({})

    def commit(self, kind: str, id: str, rev: str) -> Reply:
        """Make one commit of lines: a header, files, large files, deletions; on a new branch if it is a request."""
        request = self.query.get("create_pr", "") == "1"
        repo = self._repo(kind, id, write=not request)
        header: dict[str, Any] = {}
        added: dict[str, Blob] = {}
        deleted: list[str] = []
        for line in self.content.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                header = value
            elif key == "file":
                added[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile" and value["oid"] in self.hub.objects:
                added[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif key in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"].rstrip("/") + ("/" if key == "deletedFolder" else ""))
            else:
                raise Refusal(400, "", f"cannot commit {entry}")
        pull = {}
        if request:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
            rev, start = f"refs/pr/{number}", rev
            repo.branches[rev] = repo.at(start).oid
            pull = {"pullRequestUrl": f"{self.hub.url}/{id}/discussions/{number}"}
        new = repo.commit(rev, added, tuple(deleted), header["summary"], header.get("parentCommit", ""))
        url = f"{self.hub.url}/{id}/commit/{new.oid}"
        return Reply({"success": True, "commitOid": new.oid, "commitUrl": url, **pull})

    def info(self, kind: str, id: str, rev: str = "main") -> Reply:
        """Tell the commit and the files of a revision."""
        return Reply(self._repo(kind, id).info(rev, self.query.get("blobs", "").lower() == "true"))

    def tree(self, kind: str, id: str, rev: str, path: str = "") -> Reply:
        """List a folder."""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        return Reply(self._repo(kind, id).tree(rev, path, recursive))

    def paths(self, kind: str, id: str, rev: str) -> Reply:
        """Tell of some files and folders; silent about those that are not there."""
        entries = self._repo(kind, id).tree(rev, "", recursive=True)
        given = self.content.decode()
        asked = json.loads(given)["paths"] if given.startswith("{") else parse_qs(given).get("paths", [])
        return Reply([entry for entry in entries if entry["path"] in asked])

    def refs(self, kind: str, id: str) -> Reply:
        """List branches and tags."""
        repo = self._repo(kind, id)

        def listed(names: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return Reply({"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []})

    def log(self, kind: str, id: str, rev: str) -> Reply:
        """List commits, the newest first."""
        date, authors = "2026-01-01T00:00:00.000Z", [{"user": id.split("/")[0]}]
        said = {"message": "", "date": date, "authors": authors}
        return Reply([{"id": commit.oid, "title": commit.title, **said} for commit in self._repo(kind, id).log(rev)])

    def mark(self, kind: str, id: str, what: str, name: str) -> Reply:
        """Start a branch, or tag a revision (which then is `name`)."""
        repo, asked = self._repo(kind, id, write=True), json.loads(self.content or b"{}")
        names = repo.branches if what == "branch" else repo.tags
        new, start = (name, asked.get("startingPoint", "main")) if what == "branch" else (asked["tag"], name)
        if new in names:
            raise Refusal(409, "", f"{what} {new} exists")
        names[new] = repo.at(start).oid
        return Reply({})

    def resolve(self, id: str, rev: str, path: str, kind: str = "model") -> Reply:
        """Give a file."""
        repo = self._repo(kind, id)
        commit, blob = repo.file(rev, path)
        if repo.gated and self.user != id.split("/")[0]:
            raise Refusal(403 if self.user else 401, "GatedRepo", "Access to this model is restricted")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        return self._part(blob.content, headers)

    def _part(self, content: bytes, headers: dict[str, str]) -> Reply:
        """Return the whole of a file, or the range that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return Reply(content, 200, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            raise Refusal(416, "", "range")
        place = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return Reply(content[start : end + 1], 206, headers | place)


ROUTES: list[tuple[str, str, Callable[..., Reply]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("PUT", rf"{API}/settings", Handler.settings),
    ("POST", rf"{API}/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<rev>[^/]+)", Handler.commit),
    ("POST", rf"{API}/paths-info/(?P<rev>[^/]+)", Handler.paths),
    ("POST", rf"{API}/(?P<what>branch|tag)/(?P<name>[^/]+)", Handler.mark),
    ("GET", rf"{API}(?:/revision/(?P<rev>[^/]+))?", Handler.info),
    ("GET", rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    ("GET", rf"{API}/commits/(?P<rev>[^/]+)", Handler.log),
    ("GET", rf"{API}/refs", Handler.refs),
    ("POST", rf"{PLAIN}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", rf"{PLAIN}\.git/info/lfs/verify", Handler.verify),
    ("PUT", r"/storage/(?P<sha256>[0-9a-f]{64})", Handler.store),
    ("GET HEAD", rf"{PLAIN}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
]
