"""Access tokens: in the address, in a header, in a cookie, in the login form."""

import json
import socket
import urllib.parse
import urllib.request

import aiohttp
import pytest
from callers import ask, call, run
from serving import Running, Serve


def test_a_token_is_required(serve: Serve) -> None:
    async def visit(url: str) -> None:
        for query, headers in (
            ({"token": "secret"}, {}),
            ({"worker_auth_id": "other"}, {}),
            ({}, {"Authorization": "Bearer secret"}),
        ):
            async with call(url, headers, **query) as caller:
                await caller.handshake()

    with serve("--token", "secret", "--token", "other") as server:
        assert server.get("/api/chat")[0] == 401
        for wrong in ("token=", "token=Secret", "token=secre", "worker_auth_id=secret2", "token=%C3%A9%00"):
            assert server.get(f"/api/chat?{wrong}")[0] == 401, wrong
        assert json.loads(server.get("/api/info")[1])["token_required"] is True
        run(visit(server.url))


@pytest.fixture(scope="module")
def guarded(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server with a token and a foreign page that does not know tokens."""
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
                assert (
                    str(page.url) == f"{guarded.url}/?lang=en"
                )  # without the token, which browser histories would keep
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
    ids=["charset", "not UTF-8", "not gzip", "no boundary", "long", "empty"],
)
def test_an_invalid_form_counts_as_a_wrong_token(guarded: Running, headers: dict[str, str], body: bytes) -> None:
    status, page, _ = ask(guarded, "/login", headers, method="POST", data=body)
    assert status == 401 and "This token is wrong" in page
    assert not [event for event in guarded.events() if event["level"] == "error"]


def test_opening_the_form_address_leads_to_the_page(guarded: Running) -> None:
    status, _, headers = ask(guarded, "/login")
    assert (status, headers["Location"]) == (303, "./")


def test_a_cookie_of_another_server_on_this_host_does_no_harm(guarded: Running) -> None:
    """Browsers share cookies between ports."""
    good = ask(guarded, f"/?token={TOKEN}")[2]["Set-Cookie"].split(";")[0]
    other = "pplex_01234567=0123456789abcdef"
    for cookies in (f"{good}; {other}", f"{other}; {good}", f"{good.split('=')[0]}=old; {good}"):
        assert ask(guarded, "/api/chat", {"Cookie": cookies}, method="POST")[0] == 204


def test_a_login_body_that_comes_too_late_is_cut_off(serve: Serve) -> None:
    with serve(limits={"header_s": 0.5}) as running, socket.create_connection(("127.0.0.1", running.port), 10) as plug:
        plug.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\ntoken=")
        assert plug.recv(1000) == b"", "the connection is closed"
