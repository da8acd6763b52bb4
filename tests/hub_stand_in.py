"""A stand-in for the Hugging Face hub: repositories, and the HTTP requests that find, fetch and upload files.

It is also a proxy for plain HTTP: it answers whatever host a request names.
"""

import base64
import hashlib
import json
import re
import sys
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from pplex.export.checkpoint import CONFIG_FILE, REQUIRED_FILES

COMMIT = "0123456789abcdef" * 2 + "01234567"
NEEDED = (CONFIG_FILE, *REQUIRED_FILES)
TOKEN = "hf_secret"
RELEASED_CONFIG = b'{"model_type": "personaplex", "version": "7b-v1"}'
STALL_S = 60.0  # longer than any test waits


def released_files() -> dict[str, bytes]:
    files = {name: name.encode() * 100 for name in (*NEEDED, "README.md")}
    return {**files, CONFIG_FILE: RELEASED_CONFIG}


@dataclass
class Repo:
    """A repository of the stand-in, with branch main at COMMIT; tests set its faults."""

    name: str
    files: dict[str, bytes] = field(default_factory=released_files)
    token: str | None = None  # the token without which no file is served, and nothing is uploaded
    licence_accepted: bool = True
    private: bool = False
    sentence: str = ""  # the hub's own words about a refusal
    in_body: bool = False  # in the answer's JSON, not in its header
    broken: dict[str, int] = field(default_factory=dict)  # "revision" or a file -> status to answer with
    failures: dict[str, int] = field(default_factory=dict)  # how often a request fails with 503 before it works
    cut: set[str] = field(default_factory=set)  # files that break off in the middle
    short: set[str] = field(default_factory=set)  # files that end early, as if they were whole
    stalled: set[str] = field(default_factory=set)  # "revision", a file or an upload that stops in the middle
    elsewhere: set[str] = field(default_factory=set)  # files that another address serves
    announced: dict[str, int] = field(default_factory=dict)  # sizes in the list of files, if they are not the real ones
    resumable: bool = False  # answers requests for the rest of a file
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)  # uploaded content by SHA-256, committed or not

    def sent(self) -> set[str]:
        return {line.removeprefix("GET ") for line in self.asked if line.startswith("GET ")} - {"revision"}

    def tree(self) -> bytes:
        """The list of files that `hf download` asks for."""
        files = [
            {"type": "file", "path": name, "size": len(data), "oid": sha1(data)} for name, data in self.files.items()
        ]
        return json.dumps(files).encode()

    def info(self) -> bytes:
        siblings = [
            {"rfilename": name, "size": self.announced.get(name, len(data)), "blobId": sha1(data)}
            for name, data in self.files.items()
        ]
        return json.dumps(
            {"id": self.name, "sha": COMMIT, "private": self.private, "siblings": siblings, "downloads": 0, "tags": []}
        ).encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    repos: dict[str, Repo]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was stopped is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Answer(BaseHTTPRequestHandler):
    server: Server
    repo: Repo | None = None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/(?P<repo>\w+/\w+)(?:/(?P<what>revision|tree)/(?P<revision>\w+))?", path)
        file = re.fullmatch(r"/(?P<repo>\w+/\w+)/(?P<how>resolve|elsewhere)/(?P<revision>\w+)/(?P<what>.+)", path)
        asked = api or file
        self.repo = repo = self.server.repos.get(asked["repo"]) if asked else None
        if asked is None or repo is None:
            self.reply(404, error="RepoNotFound")
            return
        what = asked["what"] or "revision"
        repo.asked.append(f"{self.command} {what}")
        if what in repo.broken:
            self.reply(repo.broken[what])
        elif repo.failures.get(what):
            repo.failures[what] -= 1
            self.reply(503)
        elif asked["revision"] not in (None, "main", COMMIT):
            self.reply(404, error="RevisionNotFound")
        elif api:
            if what in repo.stalled:
                time.sleep(STALL_S)
            self.reply(200, repo.tree() if what == "tree" else repo.info())
        else:
            self.reply_file(repo, what, asked["how"] == "elsewhere")

    do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        """A proxy for HTTPS that wants a password."""
        self.send_error(407)

    def reply_file(self, repo: Repo, name: str, elsewhere: bool) -> None:
        data = repo.files.get(name, b"")
        if repo.token is not None and self.headers["Authorization"] != f"Bearer {repo.token}" and not elsewhere:
            self.reply(401, error="GatedRepo")
        elif not repo.licence_accepted:
            self.reply(403, error="GatedRepo")
        elif name not in repo.files:
            self.reply(404, error="EntryNotFound")
        elif name in repo.elsewhere and not elsewhere:
            where = {"Location": self.path.replace("/resolve/", "/elsewhere/"), "X-Linked-Etag": f'"{sha1(data)}"'}
            self.reply(302, headers={**where, "X-Linked-Size": str(len(data))})
        elif self.command == "GET" and name in repo.cut:
            repo.cut.remove(name)
            if not repo.resumable:
                repo.broken[name] = 500  # on a request for the rest
            self.reply(200, data, send=len(data) // 2)
        elif self.command == "GET" and name in repo.short:
            self.reply(200, data[: len(data) // 2])
        elif self.command == "GET" and name in repo.stalled:
            self.reply(200, data, send=len(data) // 2, stall=True)
        elif self.headers["Range"]:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])  # type: ignore[index]
            repo.asked.append(f"RANGE {name} {start}")
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(206, data[start:], headers={"Content-Range": span})
        else:
            self.reply(200, data)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers["Content-Length"] or 0))
        if path == "/api/validate-yaml":
            self.reply(200, b"{}")
            return
        if path == "/api/repos/create":
            self.create(json.loads(body))
            return
        asked = re.fullmatch(r"(?:/api/models)?/(?P<repo>\w+/\w+)(?:/|\.git/info/lfs/)(?P<what>\w+)(?:/\w+)?", path)
        self.repo = repo = self.server.repos.get(asked["repo"]) if asked else None
        if asked is None or repo is None:
            self.reply(404, error="RepoNotFound")
        elif not self.may_write(repo):
            self.reply(403)
        else:
            answer = {"preupload": preupload, "objects": batch, "verify": verify, "commit": commit}[asked["what"]]
            host = f"http://{self.headers['Host']}"
            self.reply(200, json.dumps(answer(repo, body, host)).encode())

    def do_PUT(self) -> None:
        found = re.fullmatch(r"/lfs/(?P<repo>\w+/\w+)/(?P<oid>\w+)", self.path)
        repo = self.server.repos[found["repo"]] if found else None
        assert found and repo
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == found["oid"]
        repo.asked.append(f"PUT {len(data)}")
        if f"PUT {len(data)}" in repo.stalled:
            time.sleep(STALL_S)
        repo.stored[found["oid"]] = data
        self.reply(200)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        template = self.server.repos.get("template/template")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.repo = template
            self.reply(401)
        elif name in self.server.repos:
            self.reply(409)
        elif template is not None and not self.may_write(template):
            self.repo = template
            self.reply(403)
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repos[name] = Repo(name, {".gitattributes": b""}, private=private)
            self.reply(200, json.dumps({"url": f"http://{self.headers['Host']}/{name}", "id": name}).encode())

    def may_write(self, repo: Repo) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}" and "write" not in repo.broken

    def reply(
        self,
        status: int,
        data: bytes = b"",
        error: str = "",
        send: int | None = None,
        stall: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        sentence = self.repo.sentence if self.repo and status in (401, 403) else ""
        if sentence and self.repo and self.repo.in_body:
            data = json.dumps({"error": sentence}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{sha1(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if error:
            self.send_header("X-Error-Code", error)
        if sentence and self.repo and not self.repo.in_body:
            self.send_header("X-Error-Message", sentence)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:send])
            self.wfile.flush()
        if stall:
            time.sleep(STALL_S)

    def log_message(self, format: str, *args: object) -> None:
        pass


def preupload(repo: Repo, body: bytes, host: str) -> Any:
    """Small text goes into the commit, everything else is uploaded before it."""
    files = json.loads(body)["files"]
    text = (".md", ".json", "Notice")
    modes = {file["path"]: "regular" if file["path"].endswith(text) else "lfs" for file in files}
    return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}


def batch(repo: Repo, body: bytes, host: str) -> Any:
    """Where to upload what the hub does not have."""

    def entry(oid: str, size: int) -> dict[str, Any]:
        actions = {
            "upload": {"href": f"{host}/lfs/{repo.name}/{oid}"},
            "verify": {"href": f"{host}/{repo.name}.git/info/lfs/verify"},
        }
        return {"oid": oid, "size": size} | ({} if oid in repo.stored else {"actions": actions})

    return {"transfer": "basic", "objects": [entry(item["oid"], item["size"]) for item in json.loads(body)["objects"]]}


def verify(repo: Repo, body: bytes, host: str) -> Any:
    asked = json.loads(body)
    assert len(repo.stored[asked["oid"]]) == asked["size"]
    return {}


def commit(repo: Repo, body: bytes, host: str) -> Any:
    repo.asked.append("COMMIT")
    for line in body.decode().splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            repo.files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            repo.files[value["path"]] = repo.stored[value["oid"]]
        elif item["key"] == "deletedFile":
            del repo.files[value["path"]]
    return {"commitUrl": f"{host}/{repo.name}/commit/{COMMIT}", "commitOid": COMMIT}


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
