"""Access as a browser, a proxy and an operator see it: origins, refusals in the log, and long requests."""

import asyncio
import urllib.parse
import urllib.request

import aiohttp
import pytest
from callers import Answer, ask, call, raw, run
from serving import Running, Serve

from pplex.server.refusals import MAX_LINE_BYTES


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
def test_a_page_behind_a_trusted_proxy_has_our_origin(behind: Running, headers: dict[str, str]) -> None:
    assert ask(behind, "/api/chat", {**PUBLIC, **headers}, method="POST")[0] == 204


@pytest.mark.parametrize(
    "headers, reached",
    [
        ({"Host": "localhost:8998"}, "'localhost:8998'"),
        ({"Host": "voice.example:8998"}, "'voice.example:8998'"),
        ({"Host": "localhost", "X-Forwarded-Host": "other.example"}, "'localhost' or 'other.example'"),
    ],
)
def test_a_refusal_names_both_origins_and_is_logged(behind: Running, headers: dict[str, str], reached: str) -> None:
    status, reason, _ = ask(behind, "/api/chat", {**PUBLIC, **headers}, method="POST")
    assert status == 403
    assert f"The page comes from 'https://voice.example', but this server was reached as {reached}." in reason
    assert "--origin https://voice.example" in reason and "--trusted-proxy" in reason
    logged = [event for event in behind.events() if event["event"] == "request refused"][-1]
    assert (logged["status"], logged["origin"], logged["host"]) == (403, "https://voice.example", headers["Host"])


def test_a_request_without_a_host_is_refused_with_a_reason(behind: Running) -> None:
    answer = raw(behind, b"POST /api/chat HTTP/1.0\r\nOrigin: https://voice.example\r\n\r\n")
    assert b" 403 " in answer and b"an address without a Host header" in answer


def test_forwarded_host_of_an_untrusted_peer_is_ignored(server: Running) -> None:
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


@pytest.mark.parametrize("letter", ["あ", "é", "😀", "a"])
def test_a_persona_of_2000_characters_in_any_script_arrives(server: Running, letter: str) -> None:
    """If the model has no room for it, our own message says so, not that of a parser."""
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
    ids=["address", "cookie", "header", "not HTTP"],
)
def test_an_unparsable_request_is_refused_with_our_message(
    server: Running, request_bytes: bytes, status: int, words: bytes
) -> None:
    before = server.metric(f'pplex_refused_total{{status="{status}"}}')
    answer = raw(server, request_bytes)
    assert f" {status} ".encode() in answer.splitlines()[0] and words in answer
    assert server.metric(f'pplex_refused_total{{status="{status}"}}') == before + 1
    logged = [event for event in server.events() if event["event"] == "request refused"][-1]
    assert logged["status"] == status and words.decode() in logged["reason"]


def test_pages_of_other_origins_are_refused_unless_allowed(serve: Serve, server: Running) -> None:
    def status(running: Running, origin: str) -> int:
        request = urllib.request.Request(f"{running.url}/api/chat", headers={"Origin": origin})
        try:
            with urllib.request.urlopen(request) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(server, "https://evil.example") == 403
    assert status(server, "null") == 403
    assert status(server, "http://") == 403
    assert status(server, "http://[evil.example") == 403
    assert status(server, server.url) == 426
    with serve("--origin", "https://friend.example") as other:
        assert status(other, "https://friend.example") == 426
        assert status(other, "https://evil.example") == 403
