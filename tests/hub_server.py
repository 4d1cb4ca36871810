"""A hub on this machine: what huggingface_hub's client asks of huggingface.co, over HTTP, with repositories in memory.

It has whoami, the creation of repositories, uploads (preupload, Git LFS, commits as NDJSON), the listings that a
download begins with, and files with the headers and error codes that the client goes by. It stores nothing by Xet:
`xet` says which of the client's two uploads runs. Without it, weights go by Git LFS in one commit; with it, the server
calls every file a regular one, and the client commits a large folder in parts.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.constants
import huggingface_hub.hf_api
import huggingface_hub.utils
import pytest
import yaml

PAGE = 500  # files in a page of a listing
TOKENS = {"hf_writes": ("ada", "write"), "hf_reads": ("ada", "read"), "hf_other": ("bob", "write")}
ORGS = {"ada": ["org"], "bob": []}


@dataclass
class Repo:
    private: bool = False
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)  # path -> content, and whether it is in LFS
    commits: list[str] = field(default_factory=lambda: [40 * "0"])
    titles: list[str] = field(default_factory=list)


class Refused(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, message: str, code: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.fields = status, code, {"error": message, **fields}


class Hub(ThreadingHTTPServer):
    """The server; `before_commit` may raise, or stop the process that is uploading."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, xet: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.xet = xet
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.before_commit: Callable[[], None] = lambda: None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to talk to this hub alone."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def running(xet: bool = False) -> Iterator[Hub]:
    hub = Hub(xet)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def connect(monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Path, token: str | None = "hf_writes") -> None:
    """Let huggingface_hub, in this process, talk to this hub: it reads its settings when it is imported."""
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": not hub.xet,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(home / "cache"),
        "HF_TOKEN_PATH": str(home / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)  # of the module's functions
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    huggingface_hub.utils.disable_progress_bars()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), unquote(parts.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, path, self.headers.get("Authorization")))
        try:
            for method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    with self.server.lock:
                        function(self, *match.groups())
                    return
            raise Refused(404, f"no such page: {self.command} {path}")
        except Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self._json(refused.fields, refused.status, {"X-Error-Message": str(refused), **headers})

    def _json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self) -> tuple[str, str] | None:
        """Name and role of the one who asks, None without a token. Raises Refused for a token that is not known."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        if given.removeprefix("Bearer ") not in TOKENS:
            raise Refused(401, "Invalid username or password.")
        return TOKENS[given.removeprefix("Bearer ")]

    def repo(self, name: str, *, write: bool = False) -> Repo:
        user, found, owner = self.user(), self.server.repos.get(name), name.split("/")[0]
        member = user is not None and owner in (user[0], *ORGS[user[0]])
        if found is None or (found.private and not member):
            raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and (not member or user is None or user[1] != "write"):
            raise Refused(403, "Forbidden: you don't have the rights to write here")
        return found

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name} for name in ORGS[user[0]]]
        token = {"displayName": "a token", "role": user[1]}
        self._json(
            {"type": "user", "name": user[0], "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}
        )

    def create(self) -> None:
        asked, user = json.loads(self.body), self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        owner = asked["organization"] or user[0]
        name = f"{owner}/{asked['name']}"
        if owner not in (user[0], *ORGS[user[0]]) or user[1] != "write":
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        url = f"{self.server.url}/{name}"
        if name in self.server.repos:
            raise Refused(409, "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repos[name] = Repo(private)
        self._json({"url": url, "name": name, "id": name})

    def validate(self) -> None:
        """A card's YAML, as the hub looks at it: it must be YAML, and name its base models as the hub does."""
        text = json.loads(self.body)["content"]
        top = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            fields = yaml.safe_load(top[1]) if top else {}
        except yaml.YAMLError as error:
            raise Refused(400, "Invalid YAML", errors=[{"message": str(error)}]) from error
        base = fields.get("base_model", "org/name")
        if not isinstance(base, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            raise Refused(400, "Invalid metadata", errors=[{"message": '"base_model" is not a valid model id'}])
        self._json({"errors": [], "warnings": [] if top else [{"message": "empty or missing yaml metadata"}]})

    def preupload(self, name: str) -> None:
        repo, modes = self.repo(name, write=True), []
        for file in json.loads(self.body)["files"]:
            lfs = not self.server.xet and file["path"].endswith(".safetensors")
            data = repo.files.get(file["path"], (None, False))[0]
            oid = None if data is None else hashlib.sha256(data).hexdigest() if lfs else blob_id(data)
            mode = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            modes.append(mode)
        self._json({"files": modes})

    def lfs_batch(self, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            known = one["oid"] in self.server.objects
            upload = {} if known else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **upload})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "not the object of this hash")
        self.server.objects[oid] = self.body
        self._send(b"", 200, {})

    def commit(self, name: str) -> None:
        repo, files, title = self.repo(name, write=True), {}, ""
        self.server.before_commit()
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile" and value["oid"] in self.server.objects:
                files[value["path"]] = (self.server.objects[value["oid"]], True)
            else:
                raise Refused(400, f"not understood: {item}")
        repo.files |= files
        repo.titles.append(title)
        repo.commits.append(hashlib.sha1(f"{name} {len(repo.commits)}".encode()).hexdigest())
        url = f"{self.server.url}/{name}/commit/{repo.commits[-1]}"
        self._json({"success": True, "commitOid": repo.commits[-1], "commitUrl": url})

    def at(self, name: str, revision: str | None) -> Repo:
        repo = self.repo(name)
        if revision not in (None, "main", repo.commits[-1]):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo

    def info(self, name: str, revision: str | None) -> None:
        repo = self.at(name, revision)
        siblings = [{"rfilename": path} for path in repo.files]
        self._json(
            {"id": name, "modelId": name, "sha": repo.commits[-1], "private": repo.private, "siblings": siblings}
        )

    def tree(self, name: str, revision: str) -> None:
        entries, start = sorted(self.at(name, revision).files.items()), int(self.query.get("cursor", ["0"])[0])
        page = []
        for path, (data, lfs) in entries[start : start + PAGE]:
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            if lfs:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            page.append(entry)
        following = f"{self.server.url}/api/models/{name}/tree/{revision}?recursive=True&cursor={start + PAGE}"
        more = {"Link": f'<{following}>; rel="next"'} if start + PAGE < len(entries) else {}
        self._json(page, 200, more)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.at(name, revision)
        if path not in repo.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data, lfs = repo.files[path]
        headers = {"X-Repo-Commit": repo.commits[-1], "ETag": f'"{blob_id(data)}"', "Accept-Ranges": "bytes"}
        if lfs:
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
            data = data[int(start[1]) :]
        self._send(data, 206 if start else 200, headers)


def blob_id(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{_NAME}/preupload/main", Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/([\da-f]{64})", Handler.lfs_put),
    ("POST", rf"/api/models/{_NAME}/commit/main", Handler.commit),
    ("GET", rf"/api/models/{_NAME}(?:/revision/([^/]+))?", Handler.info),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", Handler.tree),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
