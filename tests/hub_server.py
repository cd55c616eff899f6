"""A Hub on this machine: the endpoints that huggingface_hub speaks to, with faults to order.

    with Hub() as hub:
        hub.add_repo("you/model", {"config.json": "{}"})
        hub.fail("PUT", "/lfs/", drop_after=1000)   # the next upload breaks off after 1,000 bytes

A data set is a repository named `datasets/you/name`, as in the addresses of its files. Everything lies in memory. `hub.environment(home)` is what a process has to find in its environment to
speak to it; the `hub` fixture does the same for this process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, ADMIN = "hf_secretOfTheWriter", "hf_secretOfTheReader", "hf_secretOfAnother"
USERS = {  # token -> who it belongs to and what it may do
    WRITER: {"name": "you", "orgs": ["lab"], "role": "write"},
    READER: {"name": "you", "orgs": ["lab"], "role": "read"},
    ADMIN: {"name": "other", "orgs": [], "role": "write"},
}
LICENSES = ("apache-2.0", "mit", "cc-by-4.0")  # of the many that the Hub knows
REPO = r"(?P<repo>(?:datasets/)?[^/]+/[^/]+)"


@dataclass(frozen=True)
class Blob:
    """A file's bytes, in git or in large-file storage."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        """Git's name for it: the hash of the bytes, or of the pointer to them."""
        data = self.data
        if self.lfs:
            data = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
                f"size {len(data)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A model's history: commits by id, and the branches, pull requests and tags that name them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, Blob], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {ref} {message} {id(self)}".encode()).hexdigest()
        self.commits[oid], self.refs[ref], self.messages[oid] = files, oid, message
        return oid

    def find(self, revision: str) -> str | None:
        oid = self.refs.get(revision, revision)
        return oid if oid in self.commits else None


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Attributes:
        method, part: of the request; `part` occurs in its path and query.
        status: answered instead; None to let the request be and drop the connection.
        headers: of the answer.
        drop_after: bytes of the request's or the answer's body after which the connection breaks.
        times: how often.
    """

    method: str
    part: str
    status: int | None
    headers: Mapping[str, str]
    drop_after: int | None
    times: int


@dataclass(frozen=True)
class Call:
    """A request that came in."""

    method: str
    path: str  # with its query
    status: int  # 0 where the connection was dropped
    token: str | None
    body: bytes
    headers: Mapping[str, str]


class Refusal(Exception):
    """An error response of the Hub."""

    def __init__(
        self, status: int, message: str, code: str = "", commit: str | None = None
    ) -> None:
        self.status, self.message, self.code, self.commit = status, message, code, commit


class Hub:
    """The server and its repositories."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> bytes: the large-file storage of all repos
        self.calls: list[Call] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, str | bytes] | Path | None = None,
        *,
        ref: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """A repository, or a commit on a branch of one; returns the commit's id.

        `files` is a mapping of paths to contents, or a folder whose files are taken.
        """
        if isinstance(files, Path):
            folder = files
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        blobs = {}
        for path, content in (files or {}).items():
            data = content.encode() if isinstance(content, str) else content
            blobs[path] = Blob(data, _is_large(data))
            if blobs[path].lfs:
                self.large[blobs[path].sha256] = data
        repo = self.repos.setdefault(name, Repo())
        repo.private, repo.gated = private, gated
        return repo.commit(ref, blobs, "initial commit")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> bytes at a revision."""
        repo = self.repos[name]
        oid = repo.find(revision)
        assert oid is not None, f"{name} has no {revision}, only {sorted(repo.refs)}"
        return {path: blob.data for path, blob in repo.commits[oid].items()}

    def fail(
        self,
        method: str,
        part: str,
        status: int | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        drop_after: int | None = None,
        times: int = 1,
    ) -> None:
        """Add a fault to be returned."""
        self._faults.append(Fault(method, part, status, headers or {}, drop_after, times))

    def heal(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    def seen(self, method: str, part: str = "") -> list[Call]:
        """The requests of a method whose path and query hold `part`, oldest first."""
        return [call for call in self.calls if call.method == method and part in call.path]

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """Environment variables of a process that uses this Hub."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.method == method and fault.part in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        fault = self.hub.fault_for(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        dropped = fault is not None and fault.status is None
        if fault is not None and dropped and self.command in ("PUT", "POST"):
            self._note(0, self.rfile.read(min(length, fault.drop_after or 0)))
            return self._drop()
        self.body = self._read_body(length)
        if fault is not None and fault.status is not None:
            self._note(fault.status, self.body)
            return self._answer(fault.status, {"error": "ordered by the test"}, fault.headers)
        try:
            with self.hub.lock:
                try:
                    status, answer, headers = self._route()
                except (KeyError, ValueError, TypeError) as error:  # not to be tried again
                    raise Refusal(400, f"this Hub of the tests fails: {error!r}") from error
        except Refusal as refusal:
            self._note(refusal.status, self.body)
            shown = {"X-Error-Message": refusal.message}
            shown |= {"X-Error-Code": refusal.code} if refusal.code else {}
            shown |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
            return self._answer(refusal.status, {"error": refusal.message}, shown)
        self._note(0 if dropped else status, self.body)
        self._answer(status, answer, headers, fault.drop_after if fault and dropped else None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _note(self, status: int, body: bytes) -> None:
        self.hub.calls.append(
            Call(
                self.command,
                self.path,
                status,
                self.token,
                body,
                {k.lower(): v for k, v in self.headers.items()},
            )
        )

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)

    def _answer(
        self,
        status: int,
        answer: Any,
        headers: Mapping[str, str],
        drop_after: int | None = None,
    ) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | dict(headers)).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data if drop_after is None else data[:drop_after])
        if drop_after is not None:
            self._drop()

    def log_message(self, *ignored: object) -> None:
        pass

    # what the endpoints do: each returns (status, answer, headers)

    def _route(self) -> tuple[int, Any, dict[str, str]]:
        path, self.query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        path = path.replace("/api/datasets/", "/api/models/datasets/", 1)
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, serve in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and wanted == method:
                parts = {key: unquote(value or "") for key, value in match.groupdict().items()}
                return serve(self, **parts)
        raise Refusal(404, f"no endpoint {self.command} {path}")

    def _user(self) -> dict[str, Any] | None:
        if self.token is None:
            return None
        if self.token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS[self.token]

    def _may_write(self, namespace: str) -> bool:
        user = self._user()
        return (
            user is not None
            and user["role"] == "write"
            and namespace in (user["name"], *user["orgs"])
        )

    def _repo(self, name: str) -> Repo:
        """Return a repository; raise the Hub's error if there is none or the caller may not see it."""
        user = self._user()
        repo = self.hub.repos.get(name)
        namespace = name.split("/")[-2]
        visible = repo is not None and (
            not repo.private or (user and namespace in (user["name"], *user["orgs"]))
        )
        if repo is None or not visible:
            if user is None:
                raise Refusal(401, "Invalid username or password.")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.find(revision)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def _writable(self, name: str) -> Repo:
        repo = self._repo(name)
        if self._user() is None:
            raise Refusal(401, "Invalid username or password.")
        if "create_pr" not in self.query and not self._may_write(name.split("/")[-2]):
            raise Refusal(
                403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request."
            )
        return repo

    def whoami(self) -> tuple[int, Any, dict[str, str]]:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        token = {"displayName": "laptop", "role": user["role"]}
        return 200, {"type": "user", "name": user["name"], "orgs": [{"name": o} for o in user["orgs"]],
                     "auth": {"type": "access_token", "accessToken": token}}, {}  # fmt: skip

    def create(self) -> tuple[int, Any, dict[str, str]]:
        asked, user = json.loads(self.body), self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = asked.get("organization") or user["name"]
        name = f"{namespace}/{asked['name']}"
        if not self._may_write(namespace):
            raise Refusal(
                403,
                f'You don\'t have the rights to create a model under the namespace "{namespace}"',
            )
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repos:
            return 409, answer | {"error": "You already created this model repo"}, {}
        self.hub.add_repo(name, {".gitattributes": "*.safetensors filter=lfs\n"},
                          private=asked.get("visibility") == "private")  # fmt: skip
        return 200, answer, {}

    def validate(self) -> tuple[int, Any, dict[str, str]]:
        found = re.search(r"^license: (.+)$", json.loads(self.body)["content"], re.MULTILINE)
        if found and found[1] not in LICENSES:
            message = f'"license" must be one of [{", ".join(LICENSES)}]'
            return 400, {"errors": [{"message": message}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    def info(self, repo: str, revision: str = "main") -> tuple[int, Any, dict[str, str]]:
        found = self._repo(repo)
        oid = self._commit_of(found, revision)
        siblings = [
            {"rfilename": path, "size": len(blob.data), "blobId": blob.git_oid} | _lfs(blob)
            for path, blob in found.commits[oid].items()
        ]
        return 200, {"id": repo, "modelId": repo, "sha": oid, "private": found.private, "tags": [],
                     "gated": "manual" if found.gated else False, "siblings": siblings}, {}  # fmt: skip

    def access(self, repo: str, write: str = "") -> tuple[int, Any, dict[str, str]]:
        found = self._writable(repo) if write else self._repo(repo)
        self._check_gate(repo, found)
        return 200, {}, {}

    def refs(self, repo: str) -> tuple[int, Any, dict[str, str]]:
        found = self._repo(repo)
        branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": o}
                    for r, o in found.refs.items() if not r.startswith("refs/")]  # fmt: skip
        return 200, {"branches": branches, "tags": [], "converts": [], "pullRequests": []}, {}

    def tree(self, repo: str, revision: str, below: str = "") -> tuple[int, Any, dict[str, str]]:
        found = self._repo(repo)
        files = found.commits[self._commit_of(found, revision)]
        start = below and f"{below}/"
        inside = [path for path in files if path.startswith(start)]
        if below and not inside:
            raise Refusal(404, f"{below} does not exist", "EntryNotFound")
        parents = {str(folder) for path in inside for folder in PurePosixPath(path).parents}
        folders = sorted(path for path in parents if path.startswith(start) and path != ".")
        if self.query.get("recursive", ["true"])[0].lower() in ("false", "0"):
            inside, folders = ([path for path in paths if "/" not in path.removeprefix(start)]
                               for paths in (inside, folders))  # fmt: skip
        entries = [_entry(path, files[path]) for path in inside]
        return 200, [*map(_folder_entry, folders), *entries], {}

    def paths_info(self, repo: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        found = self._repo(repo)
        try:
            asked = json.loads(self.body)["paths"]
        except ValueError:  # sent as a form
            asked = parse_qs(self.body.decode())["paths"]
        files = found.commits[self._commit_of(found, revision)]
        folders = [p for p in asked if any(path.startswith(f"{p}/") for path in files)]
        entries = [_entry(path, files[path]) for path in asked if path in files]
        return 200, [*entries, *map(_folder_entry, folders)], {}

    def preupload(self, repo: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        found = self._writable(repo)
        files = found.commits[self._commit_of(found, revision)]
        answer = []
        for asked in json.loads(self.body)["files"]:
            old = files.get(asked["path"])
            large = _is_large(base64.b64decode(asked["sample"]), asked["size"])
            item = {"path": asked["path"], "shouldIgnore": False,
                    "uploadMode": "lfs" if large else "regular"}  # fmt: skip
            if old is not None:
                item["oid"] = old.sha256 if old.lfs else old.git_oid
            answer.append(item)
        return 200, {"files": answer}, {}

    def batch(self, repo: str) -> tuple[int, Any, dict[str, str]]:
        self._repo(repo)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            if asked["oid"] not in self.hub.large:  # else there is nothing to do
                asked["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify"},
                }
            objects.append(asked)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def put(self, oid: str) -> tuple[int, Any, dict[str, str]]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the bytes are not those that were announced")
        self.hub.large[oid] = self.body
        return 200, {}, {}

    def verify(self) -> tuple[int, Any, dict[str, str]]:
        asked = json.loads(self.body)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "no such object")
        return 200, {}, {}

    def commit(self, repo: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        found = self._writable(repo)
        files = dict(found.commits[self._commit_of(found, revision)])
        message = ""
        for line in self.body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[value["path"]] = Blob(self.hub.large[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in found.refs)
        request = "create_pr" in self.query
        oid = found.commit(f"refs/pr/{number}" if request else revision, files, message)
        return 200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid,
                     "pullRequestUrl": f"{self.hub.url}/{repo}/discussions/{number}"
                     if request else None}, {}  # fmt: skip

    def resolve(self, repo: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        found = self._repo(repo)
        self._check_gate(repo, found)
        oid = self._commit_of(found, revision)
        blob = found.commits[oid].get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", oid)
        data = blob.data
        headers = {"ETag": f'"{blob.sha256 if blob.lfs else blob.git_oid}"', "X-Repo-Commit": oid,
                   "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}  # fmt: skip
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 200, data, headers
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        if first >= len(data):
            raise Refusal(416, "range not satisfiable")
        headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        return 206, data[first : last + 1], headers

    def _check_gate(self, name: str, repo: Repo) -> None:
        if repo.gated and not self._may_write(name.split("/")[-2]):
            raise Refusal(401 if self.token is None else 403,
                          f"Access to {name} is restricted.", "GatedRepo")  # fmt: skip


Endpoint = Callable[..., tuple[int, Any, dict[str, str]]]
ROUTES: list[tuple[str, str, Endpoint]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{REPO}", _Handler.info),
    ("GET", f"/api/models/{REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", f"/api/models/{REPO}/auth-check(?P<write>/write)?", _Handler.access),
    ("GET", f"/api/models/{REPO}/refs", _Handler.refs),
    ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<below>.*))?", _Handler.tree),
    ("POST", f"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", f"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("POST", "/lfs/verify", _Handler.verify),
    ("POST", f"/api/models/{REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]  # fmt: skip


def _is_large(sample: bytes, size: int = 0) -> bool:
    """What goes into large-file storage: on the Hub .gitattributes says it, here binary content."""
    return b"\0" in sample or size > 10_000_000


def _lfs(blob: Blob) -> dict[str, Any]:
    if not blob.lfs:
        return {}
    lfs = {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return {"lfs": lfs}


def _folder_entry(path: str) -> dict[str, Any]:
    return {
        "type": "directory",
        "path": path,
        "size": 0,
        "oid": hashlib.sha1(path.encode()).hexdigest(),
    }


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    size = len(blob.data)
    return {"type": "file", "path": path, "size": size, "oid": blob.git_oid} | _lfs(blob)


def forget_lookups() -> None:
    """Forget what was looked up on the Hub, as a process of its own has not seen it."""
    from lorsmerge_cli.hub import data_sets, files

    for remembered in (
        files.list_files, files.download, data_sets.find_data_set, data_sets.data_files,
    ):  # fmt: skip
        remembered.cache_clear()
