"""What OpenAI's client and openai-agents see when the server refuses or ends a conversation: real clients, real server."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from agent_sessions import AGENTS, DEFECT, KEY, script_of
from callers import call, run
from serving import Running, Serve

pytestmark = pytest.mark.skipif(
    not (AGENTS / "agents").is_dir(),
    reason="openai-agents is not installed in .venv/agents: make test does so on x86-64 Linux",
)

CLIENTS = ("live", "realtime", "agents")


def ends(server: Running, seconds: float, **user: Any) -> list[dict[str, Any]]:
    """The ends of three conversations at once: OpenAI's client over live and realtime, and openai-agents."""

    def end(client: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(script_of("openai_ends.py", client, server.url, KEY, str(seconds), **user))
        return report

    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        return list(pool.map(end, CLIENTS))


@pytest.mark.parametrize(
    ("option", "speaks_s", "sentence"),
    [
        (("--pause-seconds", "2"), 1.5, "No audio for 2 s."),
        (("--max-minutes", "0.05"), None, "A conversation may last 3 s."),
    ],
)
def test_an_expired_conversation(serve: Serve, option: tuple[str, str], speaks_s: float | None, sentence: str) -> None:
    with serve("--slots", "3", "--token", KEY, *option) as server:
        live, realtime, agents = ends(server, 9, speaks_s=speaks_s)
        assert (live["last"]["type"], live["last"]["reason"], live["code"]) == ("session.closed", "expired", 1008)
        error = realtime["last"]["error"]
        assert (error["code"], error["message"], realtime["code"]) == ("session_expired", sentence, 1008)
        assert "session_expired" in agents["errors"][0] and "1008" in agents["errors"][1]
        server.wait_for(lambda: server.state()["used"] == 0)


def test_a_full_server_is_left_at_once(serve: Serve) -> None:
    with serve("--slots", "1", "--queue", "0", "--token", KEY) as server:

        async def visit() -> list[dict[str, Any]]:
            async with call(server.url, token=KEY) as caller:
                await caller.handshake()
                return await asyncio.to_thread(ends, server, 5)

        assert all("HTTP 503" in client["refused"] for client in run(visit(), 100))
        assert server.metric('pplex_refused_total{status="503"}') == len(CLIENTS)


def test_a_shutdown(serve: Serve) -> None:
    started = serve("--slots", "3", "--token", KEY, "--drain-seconds", "0.1")
    with (
        pytest.raises(AssertionError, match="the server ended with 0"),
        started as server,
        ThreadPoolExecutor(1) as pool,
    ):
        reports = pool.submit(ends, server, 12)
        server.wait_for(lambda: server.state()["used"] == 3, 60)
        time.sleep(2)
        server.process.terminate()
        live, realtime, agents = reports.result()
        assert (live["last"]["reason"], live["code"]) == ("remote_hangup", 1012), "worth another try"
        assert realtime["last"]["type"] != "error" and realtime["code"] is None, "closed with 1001, without an error"
        assert agents["errors"] == []


def test_a_defect(serve: Serve) -> None:
    started = serve("--slots", "3", "--token", KEY, prelude=DEFECT)
    with pytest.raises(AssertionError, match="the server ended with 1"), started as server:
        live, realtime, agents = ends(server, 9)
        for client in (live, realtime):
            assert (client["last"]["error"]["type"], client["code"]) == ("server_error", 1011)
        assert "server_error" in agents["errors"][0] and "1011" in agents["errors"][1]
