"""What frameworks for agents do when the server refuses or ends a conversation: real frameworks, real server."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tones
from agent_sessions import AGENTS, DEFECT, KEY, report_of
from callers import call, run
from serving import Running, Serve

pytestmark = pytest.mark.skipif(
    not (AGENTS / "livekit").is_dir(),
    reason="frameworks for agents are not installed in .venv/agents: make test does so on x86-64 Linux",
)

BOTH = ("livekit", "pipecat")


def sessions(server: Running, protocol: str, seconds: float, **user: Any) -> list[dict[str, Any]]:
    """The reports of LiveKit's session and of Pipecat's, which talk at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda script: report_of(server, script, protocol, seconds, **user), BOTH))


def conversations(server: Running, protocol: str) -> int:
    return int(server.metric(f'pplex_conversations_total{{protocol="{protocol}"}}'))


@pytest.mark.parametrize("protocol", ["live", "realtime"])
def test_after_the_longest_duration_livekit_begins_anew_and_pipecat_reports_it(serve: Serve, protocol: str) -> None:
    options = ("--slots", "3", "--token", KEY, "--max-minutes", "0.06")
    with serve(*options, prelude=tones.PRELUDE) as server:
        livekit, pipecat = sessions(server, protocol, 9)
        assert not livekit["failed"] and livekit["seconds"] > 4.5, "more than one conversation of 3.6 s"
        assert 3 <= conversations(server, protocol) <= 6, "Pipecat had one; LiveKit did not reconnect without a pause"
        if protocol == "live":
            assert livekit["errors"] == []
        assert 2 < pipecat["seconds"] < 4.5 and "A conversation may last 3.6 s" in pipecat["errors"][0]
        server.wait_for(lambda: server.state()["used"] == 0)


@pytest.mark.parametrize("protocol", ["live", "realtime"])
def test_without_audio_livekit_begins_anew_and_pipecat_reports_it(serve: Serve, protocol: str) -> None:
    options = ("--slots", "3", "--token", KEY, "--pause-seconds", "2")
    with serve(*options, prelude=tones.PRELUDE) as server:
        livekit, pipecat = sessions(server, protocol, 9, speaks_s=1.5)
        assert not livekit["failed"], "it connects again, and its microphone stays off"
        assert 3 <= conversations(server, protocol) <= 6, "Pipecat had one; LiveKit did not reconnect without a pause"
        assert "No audio for 2 s" in " ".join(pipecat["errors"])
        assert 2.5 < pipecat["seconds"] < 4.5, "it hears the agent until the end"
        server.wait_for(lambda: server.state()["used"] == 0)


@pytest.mark.parametrize("protocol", ["live", "realtime"])
def test_a_full_server_is_left_after_some_tries(serve: Serve, protocol: str) -> None:
    with serve("--slots", "1", "--queue", "0", "--token", KEY) as server:

        async def visit() -> list[dict[str, Any]]:
            async with call(server.url, token=KEY) as caller:
                await caller.handshake()
                return await asyncio.to_thread(sessions, server, protocol, 8)

        livekit, pipecat = run(visit(), 100)
        assert livekit["failed"] and livekit["seconds"] == 0
        assert "503" in pipecat["errors"][0] and pipecat["seconds"] == 0
        assert 4 <= server.metric('pplex_refused_total{status="503"}') <= 10


def test_a_shutdown_is_an_error_of_the_agents(serve: Serve) -> None:
    started = serve("--slots", "2", "--token", KEY, "--drain-seconds", "0.1")
    with (
        pytest.raises(AssertionError, match="the server ended with 0"),
        started as server,
        ThreadPoolExecutor(1) as pool,
    ):
        reports = pool.submit(sessions, server, "live", 12)
        server.wait_for(lambda: server.state()["used"] == 2, 60)
        time.sleep(2)
        server.process.terminate()
        livekit, pipecat = reports.result()
        assert "1012" in pipecat["errors"][0]
        assert livekit["failed"], "nobody listens any more"


def test_a_defect_is_an_error_of_the_agents(serve: Serve) -> None:
    started = serve("--slots", "2", "--token", KEY, prelude=DEFECT)
    with pytest.raises(AssertionError, match="the server ended with 1"), started as server:
        livekit, pipecat = sessions(server, "live", 12)
        assert "server_error" in " ".join(pipecat["errors"])
        assert livekit["failed"], "nobody listens any more"
