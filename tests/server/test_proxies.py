"""Debian's nginx and Caddy in front of the real server, with the unchanged snippets of docs/proxies.md.

Names resolve to this machine. Tests change only the ports and the path of nginx's certificate.
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from callers import run, speech
from chromium_tab import chromium_tab
from folders import TINY
from proxies import NAME, TRUSTED, Proxy, browser, caddy, needs_caddy, needs_nginx, nginx, refusal, snippet_of, use
from serving import Running, Serve
from twilio_caller import mu_law, phone

from pplex.server.twilio_signature import HEADER, signature_of


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


@pytest.mark.parametrize(
    ("proxy", "heading", "path", "public_url"),
    [
        pytest.param(nginx, "nginx: a name of its own", "", None, marks=needs_nginx),
        pytest.param(
            nginx, "nginx: under a path, with another Host", "/voice", f"https://{NAME}/voice", marks=needs_nginx
        ),
        pytest.param(caddy, "Caddy: a name of its own", "", None, marks=needs_caddy),
        pytest.param(caddy, "Caddy: under a path", "/voice", f"wss://{NAME}/voice/twilio", marks=needs_caddy),
    ],
)
def test_twilio_calls_through_a_proxy(
    serve: Serve, tmp_path: Path, proxy: Proxy, heading: str, path: str, public_url: str | None
) -> None:
    """Twilio signs the address that it dialled. It writes no port there: the proxy has the usual one."""
    auth_token = "0123456789abcdef"
    signature = signature_of(f"wss://{NAME}{path}/twilio", auth_token).decode()

    async def call_the_agent(address: str) -> None:
        async with (
            browser() as session,
            phone(f"{address}{path}", headers={HEADER: signature}, session=session) as caller,
        ):
            await caller.start()
            await caller.talk(mu_law(speech(6)))
            await caller.replies(5)
            await caller.stop()
            assert await caller.closed() == 1000

    options = {"protocols": ("twilio",), "twilio_auth_token": auth_token, "public_url": public_url}
    with (
        serve(limits={"backlog_frames": 25}, options=options) as server,
        proxy(snippet_of(heading), server, tmp_path) as at,
    ):
        run(call_the_agent(at))
        server.wait_for(lambda: server.state()["used"] == 0)


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
