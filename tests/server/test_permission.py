"""Who may control a conversation: clients with a control token, or everyone with --allow control."""

import json
import urllib.parse
from collections.abc import Iterator

import pytest
from callers import ask, call, run
from serving import Running, Serve
from steering import done

PARAMETERS = ("control=1", "greeting=good", "snapshot=key")


@pytest.fixture(scope="module")
def strict(serve: Serve) -> Iterator[Running]:
    """A server with a token for callers and two for controllers."""
    with serve("--slots", "1", "--token", "caller", "--control-token", "boss", "--control-token", "a b & c") as running:
        yield running


def may_control(server: Running, headers: dict[str, str] | None = None, query: str = "") -> bool:
    return json.loads(ask(server, f"/api/info{query}", headers)[1])["control"]


def test_by_default_nobody_controls(server: Running) -> None:
    for parameter in PARAMETERS:
        status, reason = server.get(f"/api/chat?{parameter}")
        assert status == 403 and "--allow control" in reason, parameter
    assert not may_control(server)


def test_a_control_token_admits_and_lets_control(strict: Running) -> None:
    for token, status in (("boss", 204), ("a b & c", 204), ("caller", 403), ("wrong", 401), ("", 401)):
        for answer in (
            ask(strict, "/api/chat?control=1", {"Authorization": f"Bearer {token}"}, method="POST"),
            ask(strict, f"/api/chat?control=1&token={urllib.parse.quote(token)}", method="POST"),
        ):
            assert answer[0] == status, token
    for parameter in PARAMETERS[1:]:
        assert ask(strict, f"/api/chat?{parameter}&token=caller", method="POST")[0] == 403
        assert ask(strict, f"/api/chat?{parameter}&token=boss", method="POST")[0] in (204, 404)
    assert ask(strict, "/api/chat?token=boss", method="POST")[0] == 204
    assert ask(strict, "/api/chat?token=caller", method="POST")[0] == 204
    assert "Only some tokens" in ask(strict, "/api/chat?control=1&token=caller", method="POST")[1]


def test_the_cookie_of_a_control_token_lets_control(strict: Running) -> None:
    cookies = {token: ask(strict, f"/?token={token}")[2]["Set-Cookie"].split(";")[0] for token in ("boss", "caller")}
    assert may_control(strict, {"Cookie": cookies["boss"]}) and not may_control(strict, {"Cookie": cookies["caller"]})
    assert may_control(strict, {"Cookie": "; ".join(cookies.values())})
    assert not may_control(strict) and may_control(strict, query="?token=boss")
    assert ask(strict, "/api/chat?control=1", {"Cookie": cookies["boss"]}, method="POST")[0] == 204
    assert ask(strict, "/api/chat?control=1", {"Cookie": cookies["caller"]}, method="POST")[0] == 403
    foreign = {"Cookie": cookies["boss"], "Origin": "https://evil.example"}
    assert "comes from" in ask(strict, "/api/chat?control=1", foreign, method="POST")[1]


def test_without_other_tokens_everyone_is_admitted_and_only_its_holders_control(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url, control="1", token="boss") as caller:
            await caller.handshake()
            await done(caller, "hold")

    with serve("--slots", "1", "--control-token", "boss") as server:
        assert server.get("/api/chat")[0] == 426 and server.get("/api/chat?control=1")[0] == 403
        assert json.loads(server.get("/api/info")[1])["token_required"] is False
        run(visit(server.url))
        admitted = [event for event in server.events() if event["event"] == "conversation admitted"]
        assert admitted[-1]["control"] is True
        orders = [event for event in server.events() if event["event"] == "order"]
        assert [(each["order"], each["frame"]) for each in orders] == [("hold", 1)]


def test_resuming_needs_the_permission_again(strict: Running) -> None:
    async def visit() -> str:
        async with call(strict.url, control="1", token="boss") as caller:
            key: str = (await caller.handshake()).session["resume"]
            caller.drop()
        return key

    key = run(visit())
    strict.wait_for(lambda: strict.metric("pplex_slots_kept") == 1)
    assert ask(strict, f"/api/chat?control=1&resume={key}&token=caller", method="POST")[0] == 403
    assert ask(strict, f"/api/chat?control=1&resume={key}&token=boss", method="POST")[0] == 204
    assert ask(strict, f"/api/chat?greeting=good&resume={key}&token=boss", method="POST")[0] == 400
    assert ask(strict, "/api/chat?snapshot=x&seed=1&token=boss", method="POST")[1] == (
        "A snapshot has its own settings: leave out seed.\n"
    )
