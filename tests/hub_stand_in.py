"""A stand-in for the Hugging Face hub: repositories, and the HTTP requests that find and fetch files."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from pplex.export.checkpoint import CONFIG_FILE, REQUIRED_FILES

COMMIT = "0123456789abcdef" * 2 + "01234567"
NEEDED = (CONFIG_FILE, *REQUIRED_FILES)
TOKEN = "hf_secret"


@dataclass
class Repo:
    """A repository of the stand-in, with branch main at COMMIT; tests set its faults."""

    name: str
    files: dict[str, bytes] = field(
        default_factory=lambda: {name: name.encode() * 100 for name in (*NEEDED, "README.md")}
    )
    token: str | None = None  # the token without which no file is served
    licence_accepted: bool = True
    broken: dict[str, int] = field(default_factory=dict)  # "revision", "tree" or a file -> status to answer with
    cut: set[str] = field(default_factory=set)  # files that break off in the middle
    asked: list[str] = field(default_factory=list)

    def sent(self) -> set[str]:
        return {line.removeprefix("GET ") for line in self.asked if line.startswith("GET ")} - {"revision", "tree"}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    repos: dict[str, Repo]


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/(?P<repo>\w+/\w+)/(?P<what>revision|tree)/(?P<revision>\w+)", path)
        asked = api or re.fullmatch(r"/(?P<repo>\w+/\w+)/resolve/(?P<revision>\w+)/(?P<what>.+)", path)
        repo = self.server.repos.get(asked["repo"]) if asked else None
        if asked is None or repo is None:
            self.reply(404, error="RepoNotFound")
            return
        what = asked["what"]
        repo.asked.append(f"{self.command} {what}")
        if what in repo.broken:
            self.reply(repo.broken[what])
        elif asked["revision"] not in ("main", COMMIT):
            self.reply(404, error="RevisionNotFound")
        elif what == "revision":
            self.reply(200, json.dumps({"id": repo.name, "sha": COMMIT}).encode())
        elif what == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _sha1(data)}
                for name, data in repo.files.items()
            ]
            self.reply(200, json.dumps(entries).encode())
        else:
            self.reply_file(repo, what)

    do_HEAD = do_GET

    def reply_file(self, repo: Repo, name: str) -> None:
        if repo.token is not None and self.headers["Authorization"] != f"Bearer {repo.token}":
            self.reply(401, error="GatedRepo")
        elif not repo.licence_accepted:
            self.reply(403, error="GatedRepo")
        elif name not in repo.files:
            self.reply(404, error="EntryNotFound")
        elif self.command == "GET" and name in repo.cut:
            repo.broken[name] = 500  # on a request for the rest
            self.reply(200, repo.files[name], send=len(repo.files[name]) // 2)
        else:
            self.reply(200, repo.files[name])

    def reply(self, status: int, data: bytes = b"", error: str = "", send: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_sha1(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:send])

    def log_message(self, format: str, *args: object) -> None:
        pass


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
