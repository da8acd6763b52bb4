"""Who is let in, as a browser, a proxy and an operator see it: origins, tokens, pages, and requests that are too long."""

import asyncio
import json
import shutil
import socket
import urllib.parse
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from callers import call, run
from serving import Running, Serve

from pplex.server.pages import PAGE
from pplex.server.refusals import MAX_LINE_BYTES

Answer = tuple[int, str, dict[str, Any]]


def ask(running: Running, path: str, headers: dict[str, str] | None = None, **options: Any) -> Answer:
    """Status, body, and cookies and headers of one request, as a browser without a memory."""

    async def request() -> Answer:
        async with aiohttp.ClientSession() as session:
            method = options.pop("method", "GET")
            sent = session.request(method, running.url + path, headers=headers, allow_redirects=False, **options)
            async with sent as answer:
                return answer.status, await answer.text(), {**answer.headers}

    return run(request())


def raw(running: Running, request: bytes) -> bytes:
    """The beginning of the answer to bytes."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as plug:
        plug.sendall(request)
        return plug.recv(65536)


# Pages of other origins, and proxies.


@pytest.fixture(scope="module")
def behind(serve: Serve) -> Running:
    """A server that trusts a proxy on this machine."""
    with serve("--trusted-proxy", "127.0.0.0/8", "--trusted-proxy", "::1", "--slots", "1") as running:
        yield running


PUBLIC = {"Origin": "https://voice.example"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "voice.example"},
        {"Host": "VOICE.example:443"},
        {"Host": "localhost:8998", "X-Forwarded-Host": "voice.example"},
        {
            "Host": "localhost:8998",
            "X-Forwarded-Host": "inner.example, voice.example:443",
            "X-Forwarded-Proto": "https",
        },
    ],
)
def test_a_page_behind_a_trusted_proxy_is_our_own(behind: Running, headers: dict[str, str]) -> None:
    assert ask(behind, "/api/chat", {**PUBLIC, **headers}, method="POST")[0] == 204


@pytest.mark.parametrize(
    "headers, reached",
    [
        ({"Host": "localhost:8998"}, "'localhost:8998'"),
        ({"Host": "voice.example:8998"}, "'voice.example:8998'"),
        ({"Host": "localhost", "X-Forwarded-Host": "other.example"}, "'localhost' or 'other.example'"),
    ],
)
def test_a_refusal_says_what_was_compared_and_is_logged(behind: Running, headers: dict[str, str], reached: str) -> None:
    status, reason, _ = ask(behind, "/api/chat", {**PUBLIC, **headers}, method="POST")
    assert status == 403
    assert f"The page comes from 'https://voice.example', but this server was reached as {reached}." in reason
    assert "--origin https://voice.example" in reason and "--trusted-proxy" in reason
    logged = [event for event in behind.events() if event["event"] == "request refused"][-1]
    assert (logged["status"], logged["origin"], logged["host"]) == (403, "https://voice.example", headers["Host"])


def test_a_request_without_a_host_is_refused_in_words(behind: Running) -> None:
    answer = raw(behind, b"POST /api/chat HTTP/1.0\r\nOrigin: https://voice.example\r\n\r\n")
    assert b" 403 " in answer and b"an address without a Host header" in answer


def test_nobody_else_is_believed_about_the_host(server: Running) -> None:
    forged = {**PUBLIC, "X-Forwarded-Host": "voice.example"}
    assert ask(server, "/api/chat", forged, method="POST")[0] == 403


def test_a_flood_of_refusals_does_not_fill_the_log(serve: Serve) -> None:
    async def flood(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(200):
                async with session.post(f"{url}/api/chat", headers={"Origin": "https://evil.example"}):
                    pass

    with serve("--slots", "1") as running:
        run(flood(running.url))
        logged = [event for event in running.events() if event["event"] == "request refused"]
        assert running.metric('pplex_refused_total{status="403"}') == 200
        assert 20 <= len(logged) < 60


# Would a conversation begin? A page asks before it blames the network.


def test_a_page_can_ask_why_it_would_be_refused(serve: Serve) -> None:
    async def full(url: str) -> Answer:
        async with call(url) as caller:
            await caller.handshake()
            return await asyncio.to_thread(ask, running, "/api/chat", method="POST")

    with serve("--slots", "1", "--queue", "0") as running:
        assert ask(running, "/api/chat", method="POST")[:2] == (204, "")
        assert ask(running, "/api/chat?seed=x", method="POST")[0] == 400
        assert ask(running, "/api/chat?resume=x", method="POST")[0] == 404
        status, reason, headers = run(full(running.url))
        assert status == 503 and "All slots are taken" in reason and headers["Retry-After"]


# A token, and a browser that cannot send one.


@pytest.fixture(scope="module")
def guarded(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server with a token and another page than ours, which knows no token."""
    folder = tmp_path_factory.mktemp("their client")
    (folder / "index.html").write_text("<h1>Their client</h1>")
    with serve("--token", "geheim & lang", "--static", str(folder), "--slots", "1") as running:
        yield running


TOKEN = urllib.parse.quote("geheim & lang")


def test_an_address_with_the_token_lets_a_browser_in(guarded: Running) -> None:
    async def visit() -> None:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:  # unsafe: 127.0.0.1
            async with browser.get(f"{guarded.url}/?token={TOKEN}&lang=en") as page:
                assert (page.status, await page.text()) == (200, "<h1>Their client</h1>")
                assert str(page.url) == f"{guarded.url}/?lang=en"  # not the token, which histories would keep
            async with browser.get(f"{guarded.url}/api/info") as info:
                assert (await info.json())["token_required"] is False
            async with browser.ws_connect(f"{guarded.url}/api/chat") as ws:
                assert not ws.closed

    run(visit())


def test_the_cookie_is_for_this_page_only_and_is_not_the_token(guarded: Running) -> None:
    status, _, headers = ask(guarded, f"/?token={TOKEN}")
    assert status == 303 and headers["Location"] == "./"  # also right behind a proxy's prefix
    name, *attributes = headers["Set-Cookie"].split("; ")
    assert set(attributes) == {"HttpOnly", "SameSite=Lax"}  # no path: the browser takes the page's folder
    assert "geheim" not in urllib.parse.unquote(name)
    forged = {"Cookie": name[:-1] + ("0" if name[-1] != "0" else "1")}
    assert ask(guarded, "/api/chat", forged, method="POST")[0] == 401
    assert ask(guarded, "/api/chat", {"Cookie": name}, method="POST")[0] == 204
    other_site = {"Cookie": name, "Origin": "https://evil.example"}
    assert ask(guarded, "/api/chat", other_site, method="POST")[0] == 403


def test_without_a_token_a_page_asks_for_it(guarded: Running) -> None:
    status, page, _ = ask(guarded, "/")
    assert status == 401 and "This server needs a token" in page and "Their client" not in page
    assert ask(guarded, "/index.html")[:2] == (status, page)
    status, page, _ = ask(guarded, "/login", method="POST", data={"token": "wrong"})
    assert status == 401 and "This token is wrong" in page
    status, _, headers = ask(guarded, "/login", method="POST", data={"token": " geheim & lang "})
    assert (status, headers["Location"]) == (303, "./") and "Set-Cookie" in headers


def test_behind_a_proxy_with_tls_the_cookie_is_for_tls_only(serve: Serve) -> None:
    with serve("--token", "a", "--trusted-proxy", "127.0.0.1", "--slots", "1") as running:
        assert "Secure" in ask(running, "/?token=a", {"X-Forwarded-Proto": "https"})[2]["Set-Cookie"]
        assert "Secure" not in ask(running, "/?token=a", {"X-Forwarded-Proto": "http"})[2]["Set-Cookie"]
        assert "PersonaPlex" in ask(running, "/?token=b")[1]  # our own page has a field for it
        assert json.loads(ask(running, "/api/info")[1])["token_required"] is True


def test_wrong_tokens_are_counted_and_logged(guarded: Running) -> None:
    before = guarded.metric('pplex_refused_total{status="401"}')
    ask(guarded, "/?token=wrong")
    ask(guarded, "/login", method="POST", data={"token": "wrong"})
    assert guarded.metric('pplex_refused_total{status="401"}') == before + 2
    assert guarded.events()[-1]["reason"] == "This token is wrong. Check it, and try again."


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "headers, body",
    [
        ({"Content-Type": "application/x-www-form-urlencoded; charset=foo"}, b"token=x"),
        (FORM, b"token=\xff\xfe"),
        ({**FORM, "Content-Encoding": "gzip"}, b"token=x"),
        ({"Content-Type": "multipart/form-data"}, b"token=x"),
        (FORM, b"token=" + b"x" * 100_000),
        (FORM, b""),
    ],
    ids=["charset", "no UTF-8", "no gzip", "no boundary", "long", "empty"],
)
def test_a_form_that_is_none_is_a_wrong_token(guarded: Running, headers: dict[str, str], body: bytes) -> None:
    status, page, _ = ask(guarded, "/login", headers, method="POST", data=body)
    assert status == 401 and "This token is wrong" in page
    assert not [event for event in guarded.events() if event["level"] == "error"]


def test_the_address_of_the_form_leads_back(guarded: Running) -> None:
    status, _, headers = ask(guarded, "/login")
    assert (status, headers["Location"]) == (303, "./")


def test_a_cookie_of_another_server_on_this_host_does_no_harm(guarded: Running) -> None:
    """Browsers do not tell ports apart."""
    good = ask(guarded, f"/?token={TOKEN}")[2]["Set-Cookie"].split(";")[0]
    other = "pplex_01234567=0123456789abcdef"
    for cookies in (f"{good}; {other}", f"{other}; {good}", f"{good.split('=')[0]}=old; {good}"):
        assert ask(guarded, "/api/chat", {"Cookie": cookies}, method="POST")[0] == 204


def test_the_body_of_a_login_must_come_in_time(serve: Serve) -> None:
    with serve(limits={"header_s": 0.5}) as running, socket.create_connection(("127.0.0.1", running.port), 10) as plug:
        plug.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\ntoken=")
        assert plug.recv(1000) == b"", "the connection is closed"


# Files.


@pytest.mark.parametrize("layout", ["links to files", "a link to the folder", "links to links"])
def test_a_folder_of_links_is_served_whole(serve: Serve, tmp_path: Path, layout: str) -> None:
    """As uv, Nix, Bazel and a ConfigMap install it."""
    store = shutil.copytree(PAGE, tmp_path / "store" / "page")
    folder = tmp_path / "page"
    if layout == "a link to the folder":
        folder.symlink_to(store)
    else:
        folder.mkdir()
        for path in store.iterdir():
            (folder / path.name).symlink_to(path)
    if layout == "links to links":
        data = tmp_path / "..2026"
        folder.rename(data)
        folder.mkdir()
        (folder / "..data").symlink_to(data)
        for path in store.iterdir():
            (folder / path.name).symlink_to(Path("..data") / path.name)
    with serve("--static", str(folder), "--slots", "1") as running:
        for path in store.iterdir():
            assert ask(running, f"/{path.name}")[:2] == (200, path.read_text()), path.name
        assert ask(running, "/")[0] == 200
        assert ask(running, "/none.js")[0] == 404
        logged = [event for event in running.events() if event["event"] == "request refused"]
        assert [(event["status"], event["path"]) for event in logged] == [(404, "/none.js")]


# Long requests.


@pytest.mark.parametrize("letter", ["あ", "é", "😀", "a"])
def test_a_persona_of_two_thousand_characters_of_any_script_arrives(server: Running, letter: str) -> None:
    """Whether the model has room for it is said in words: no parser stands before them."""
    status, reason, _ = ask(server, f"/api/chat?text_prompt={urllib.parse.quote(letter * 2000)}", method="POST")
    assert status == 204 or (status == 400 and "persona" in reason), reason


@pytest.mark.parametrize(
    "request_bytes, status, words",
    [
        (
            b"GET /api/chat?text_prompt=" + b"a" * (MAX_LINE_BYTES + 1) + b" HTTP/1.1\r\n\r\n",
            414,
            b"Shorten the persona",
        ),
        (b"GET / HTTP/1.1\r\nCookie: " + b"a" * (MAX_LINE_BYTES + 1) + b"\r\n\r\n", 414, b"one of its headers"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n", 400, b"This is not a valid HTTP request."),
        (b"hello\r\n\r\n", 400, b"This is not a valid HTTP request."),
    ],
    ids=["address", "cookie", "header", "no HTTP"],
)
def test_what_cannot_be_parsed_is_refused_in_our_words(
    server: Running, request_bytes: bytes, status: int, words: bytes
) -> None:
    before = server.metric(f'pplex_refused_total{{status="{status}"}}')
    answer = raw(server, request_bytes)
    assert f" {status} ".encode() in answer.splitlines()[0] and words in answer
    assert server.metric(f'pplex_refused_total{{status="{status}"}}') == before + 1
    logged = [event for event in server.events() if event["event"] == "request refused"][-1]
    assert logged["status"] == status and words.decode() in logged["reason"]
