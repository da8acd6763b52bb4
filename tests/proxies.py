"""Debian's nginx and Caddy with the snippets of docs/proxies.md, and a client that acts like a browser."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from callers import Caller, speech
from serving import Running

DOCS = Path(__file__).parents[1] / "docs/proxies.md"
NAME, UPSTREAM = "voice.example.org", "127.0.0.1:8998"
TRUSTED = ("--trusted-proxy", "127.0.0.1")
PATIENCE_S = 10
SYSTEM = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
NGINX, CADDY = shutil.which("nginx", path=SYSTEM), shutil.which("caddy", path=SYSTEM)

# Put before a snippet: settings to run the proxy in a test, as any user, apart from the system's own proxy.
NGINX_MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {snippet}
}}
"""
CADDY_MAIN = """
{{
    admin off
    local_certs
    skip_install_trust
    default_bind 127.0.0.1
    https_port {port}
    http_port {other_port}
}}
{snippet}
"""

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx")
needs_caddy = pytest.mark.skipif(CADDY is None, reason="caddy is not installed: apt-get install caddy")

Proxy = Callable[[str, Running, Path], AbstractContextManager[str]]  # runs a snippet; yields the proxy's address


def snippet_of(heading: str) -> str:
    """The configuration printed under a heading of the docs."""
    section = DOCS.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(r"```(?:nginx|caddy)\n(.*?)```", section, re.DOTALL)
    assert found is not None, f"no snippet under {heading!r}"
    assert UPSTREAM in found[1]
    return found[1]


@contextmanager
def nginx(snippet: str, server: Running, folder: Path) -> Iterator[str]:
    """nginx with a snippet in front of `server`; yields its address."""
    assert NGINX is not None
    port = free_port()
    make_certificate(folder)
    snippet = snippet.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/ssl/voice", str(folder))
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX_MAIN.format(folder=folder, snippet=to(server, snippet)))
    command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(configuration)]
    with running(command, folder, port):
        yield f"https://{NAME}:{port}"


@contextmanager
def caddy(snippet: str, server: Running, folder: Path) -> Iterator[str]:
    """Caddy with a snippet in front of `server`; yields its address."""
    assert CADDY is not None
    port = free_port()
    configuration = folder / "Caddyfile"
    configuration.write_text(CADDY_MAIN.format(port=port, other_port=free_port(), snippet=to(server, snippet)))
    with running([CADDY, "run", "--config", str(configuration), "--adapter", "caddyfile"], folder, port):
        yield f"https://{NAME}:{port}"


def to(server: Running, snippet: str) -> str:
    return snippet.replace(UPSTREAM, f"127.0.0.1:{server.port}")


def free_port() -> int:
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))
        return plug.getsockname()[1]


def make_certificate(folder: Path) -> None:
    """cert.pem and key.pem of an unknown authority."""
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "2", "-nodes"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """A proxy that accepts connections at `port`, with `folder` as its home."""
    homes = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    log = folder / "proxy.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, env={**os.environ, **homes}, stdout=stream, stderr=stream)
    with process:
        try:
            end = time.monotonic() + PATIENCE_S
            while not takes_connections(port):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


def takes_connections(port: int) -> bool:
    """Whether it also has its certificate: Caddy makes one after it starts to listen."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as plug, context.wrap_socket(plug, server_hostname=NAME):
            return True
    except OSError:
        return False


class Here(AbstractResolver):
    """Every name resolves to this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A client with the names, TLS and cookies of a browser."""
    connector = aiohttp.TCPConnector(resolver=Here(), ssl=False)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session:
        yield session


async def look(session: aiohttp.ClientSession, page: str, token: str | None = None) -> None:
    """Open the page as a user does, and everything it links."""
    async with session.get(page, params={"token": token} if token else None) as answer:
        assert answer.status == 200, await answer.text()
        assert str(answer.url) == page  # also after the redirect that removes the token
        text = await answer.text()
    script, style = re.search(r'<script.* src="(.*?)"', text), re.search(r'<link rel="stylesheet" href="(.*?)"', text)
    assert script is not None and style is not None
    for name, kind in ((script[1], "javascript"), (style[1], "css"), ("api/info", "json")):
        async with session.get(urljoin(page, name)) as answer:
            assert answer.status == 200 and answer.content_type.endswith(kind), (name, answer.content_type)


async def talk(session: aiohttp.ClientSession, page: str, frames: int = 6) -> None:
    """A conversation from the page: each frame is answered, and in time."""
    origin = page[: page.index("/", len("https://"))]
    query = {"audio": "f32", "text_prompt": "You enjoy a chat."}
    async with session.ws_connect(urljoin(page, "api/chat"), params=query, headers={"Origin": origin}) as ws:
        caller = await Caller(ws).handshake()
        await caller.talk(speech(frames))
        assert caller.times[-1] - caller.times[0] < frames * 0.08 + 2


async def refusal(session: aiohttp.ClientSession, page: str, origin: str) -> tuple[int, str]:
    """The server's answer to another page."""
    headers = {"Origin": origin, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers["Sec-WebSocket-Key"] = "MDEyMzQ1Njc4OWFiY2RlZg=="
    async with session.get(urljoin(page, "api/chat"), headers=headers) as answer:
        return answer.status, await answer.text()


async def use(page: str, token: str | None = None) -> None:
    """Use page, files and conversation; pages of other sites are refused."""
    async with browser() as session:
        await look(session, page, token)
        await talk(session, page)
        status, reason = await refusal(session, page, "https://elsewhere.example.net")
        assert status == 403 and "elsewhere.example.net" in reason and NAME in reason
