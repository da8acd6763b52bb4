"""Debian's nginx and Caddy in front of the real server, with the unchanged snippets of docs/proxies.md.

Names resolve to this machine. Tests change only the ports and the path of nginx's certificate.
"""

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
from callers import Caller, run, speech
from chromium_tab import chromium_tab
from folders import TINY
from serving import Running, Serve

DOCS = Path(__file__).parents[2] / "docs/proxies.md"
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


@pytest.fixture(scope="module")
def plain(serve: Serve) -> Iterator[Running]:
    """A server that trusts no proxy."""
    with serve("--slots", "2", "--resume-seconds", "0") as server:
        yield server


@pytest.fixture(scope="module")
def trusting(serve: Serve) -> Iterator[Running]:
    """A server that trusts the proxy on this machine and requires a token."""
    with serve("--slots", "2", "--resume-seconds", "0", "--token", "secret", *TRUSTED) as server:
        yield server


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


# The snippets.


@needs_nginx
def test_nginx_serves_it_under_a_host_name(plain: Running, tmp_path: Path) -> None:
    with nginx(snippet_of("nginx: a name of its own"), plain, tmp_path) as address:
        run(use(f"{address}/"))


@needs_caddy
def test_caddy_serves_it_under_a_host_name(plain: Running, tmp_path: Path) -> None:
    with caddy(snippet_of("Caddy: a name of its own"), plain, tmp_path) as address:
        run(use(f"{address}/"))


@needs_nginx
def test_nginx_serves_it_with_a_token_under_a_path(trusting: Running, tmp_path: Path) -> None:
    with nginx(snippet_of("nginx: under a path, with another Host"), trusting, tmp_path) as address:
        run(use(f"{address}/voice/", "secret"))


@needs_caddy
def test_caddy_serves_it_with_a_token_under_a_path(trusting: Running, tmp_path: Path) -> None:
    with caddy(snippet_of("Caddy: under a path"), trusting, tmp_path) as address:
        run(use(f"{address}/voice/", "secret"))


@pytest.mark.parametrize(
    "proxy, heading",
    [
        pytest.param(nginx, "nginx: under a path, with another Host", marks=needs_nginx),
        pytest.param(caddy, "Caddy: under a path", marks=needs_caddy),
    ],
)
def test_a_path_without_its_final_slash_redirects_to_the_page(
    trusting: Running, tmp_path: Path, proxy: Proxy, heading: str
) -> None:
    async def visit(address: str) -> str:
        async with browser() as session, session.get(f"{address}/voice", allow_redirects=False) as answer:
            return urljoin(f"{address}/voice", answer.headers["Location"])

    with proxy(snippet_of(heading), trusting, tmp_path) as address:
        assert run(visit(address)) == f"{address}/voice/"


@needs_nginx
def test_page_works_under_a_path(trusting: Running, tmp_path: Path) -> None:
    """A browser also checks the rules of cookies and of what a page may load."""
    names = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
    wrong = list[str]()
    with (
        nginx(snippet_of("nginx: under a path, with another Host"), trusting, tmp_path) as address,
        chromium_tab(TINY / "checkpoint/voices/synthetic.wav", names, ignore_https_errors=True) as tab,
    ):
        tab.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        tab.goto(f"{address}/voice/?token=secret")
        assert tab.url == f"{address}/voice/"
        began = trusting.metric("pplex_frames_total")
        tab.get_by_role("button", name="Talk").click()
        trusting.wait_for(lambda: trusting.metric("pplex_frames_total") > began + 5)
        tab.get_by_role("button", name="Stop").click()
        trusting.wait_for(lambda: trusting.state()["used"] == 0)
        assert not wrong


# Proxies that send another Host, or none.


@needs_nginx
@pytest.mark.parametrize("host", ["$host", "$proxy_host", "inner.example.com:81"])
def test_a_trusted_proxy_may_send_another_host(trusting: Running, tmp_path: Path, host: str) -> None:
    snippet = snippet_of("nginx: under a path, with another Host").replace("Host $host;", f"Host {host};")
    with nginx(snippet, trusting, tmp_path) as address:
        run(use(f"{address}/voice/", "secret"))


@needs_nginx
def test_a_trusted_proxy_of_http_1_0_needs_no_host(trusting: Running, tmp_path: Path) -> None:
    snippet = snippet_of("nginx: under a path, with another Host").replace("Host $host;", 'Host "";')
    with nginx(snippet.replace("http_version 1.1", "http_version 1.0"), trusting, tmp_path) as address:
        run(use(f"{address}/voice/", "secret"))


@needs_nginx
def test_a_proxy_without_a_host_header_is_refused_with_that_reason(trusting: Running, tmp_path: Path) -> None:
    """HTTP/1.1 does not allow a missing Host, even from a trusted proxy."""

    async def visit(page: str) -> tuple[int, str]:
        async with browser() as session, session.get(page) as answer:
            return answer.status, await answer.text()

    snippet = snippet_of("nginx: under a path, with another Host").replace("Host $host;", 'Host "";')
    with nginx(snippet, trusting, tmp_path) as address:
        status, reason = run(visit(f"{address}/voice/"))
    assert status == 400 and "Host" in reason
    assert "Host" in str(trusting.events()[-1])


@needs_nginx
@pytest.mark.parametrize("host, seen", [("$host", NAME), ("inner.example.com:81", "inner.example.com:81")])
def test_an_untrusted_proxy_is_named_with_its_headers(plain: Running, tmp_path: Path, host: str, seen: str) -> None:
    """The refusal names both addresses and the solution, in the answer and in the log."""

    async def visit(page: str) -> tuple[int, str]:
        async with browser() as session:
            return await refusal(session, page, page.removesuffix("/voice/"))

    snippet = snippet_of("nginx: under a path, with another Host").replace("Host $host;", f"Host {host};")
    with nginx(snippet, plain, tmp_path) as address:
        status, reason = run(visit(f"{address}/voice/"))
        port = address.rpartition(":")[2]
    assert status == 403
    assert f"{NAME}:{port}" in reason and "--trusted-proxy" in reason
    assert f"'{seen}'" in reason
    logged = [event for event in plain.events() if port in str(event)]
    assert logged and NAME in str(logged[-1]), plain.log.read_text()[-2000:]


# Long requests.


@needs_nginx
@needs_caddy
def test_longest_persona_passes_both_proxies(plain: Running, tmp_path: Path) -> None:
    """The server's own answer arrives, not a proxy's error about a long line."""
    query = {"text_prompt": "ん" * 2000, "voice_prompt": "nobody"}

    async def answers(*addresses: str) -> list[tuple[int, str]]:
        found = []
        async with browser() as session:
            for address in addresses:
                async with session.get(f"{address}/api/chat", params=query) as answer:
                    found.append((answer.status, await answer.text()))
        return found

    (tmp_path / "nginx").mkdir()
    first = nginx(snippet_of("nginx: a name of its own"), plain, tmp_path / "nginx")
    with first as one, caddy(snippet_of("Caddy: a name of its own"), plain, tmp_path) as two:
        direct, *others = run(answers(plain.url, one, two))
    assert direct[0] == 400 and "'nobody'" in direct[1]
    assert others == [direct, direct]
