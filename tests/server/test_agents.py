"""Frameworks for agents, unmodified, each in a whole session against the real server. `make test` installs them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tones
import turns
import voice
from agent_sessions import AGENTS, KEY, VOICE, report_of, script_of
from serving import Running, Serve

from pplex.server.utterances import PAUSE_FRAMES

DOCS = Path(__file__).parents[2] / "docs/apis.md"
UTTERANCE_S = (turns.SPOKEN + PAUSE_FRAMES) * 0.08

pytestmark = pytest.mark.skipif(
    not (AGENTS / "livekit").is_dir(),
    reason="frameworks for agents are not installed in .venv/agents: make test does so on x86-64 Linux",
)


@pytest.fixture(scope="module")
def in_turns(serve: Serve) -> Iterator[Running]:
    """An agent that speaks for 0.6 s in every 2.1 s."""
    with serve("--slots", "2", "--token", KEY, "--log-prompts", prelude=turns.PRELUDE) as server:
        yield server


@pytest.fixture(scope="module")
def singing(serve: Serve) -> Iterator[Running]:
    """An agent that is never silent."""
    with serve("--slots", "2", "--token", KEY, prelude=tones.PRELUDE) as server:
        yield server


@pytest.fixture(scope="module")
def writing(serve: Serve) -> Iterator[Running]:
    """An agent that speaks in turns, on a server that transcribes its users."""
    with serve("--slots", "2", "--token", KEY, "--transcribe", str(voice.MODEL), prelude=turns.PRELUDE) as server:
        yield server


def session(
    server: Running, script: str, protocol: str, seconds: float, key: str = KEY, microphone: Path = VOICE
) -> dict[str, Any]:
    """The report of a framework's session; it had one conversation, and its slot is free again."""
    name = f'pplex_conversations_total{{protocol="{protocol}"}}'
    before = server.metric(name)
    report = report_of(server, script, protocol, seconds, key, microphone=microphone)
    assert server.metric(name) - before == (key == KEY), "it connected again"
    server.wait_for(lambda: server.state()["used"] == 0)
    return report


def persona(server: Running) -> str:
    """The persona of the last conversation: whether it began with all that the framework sets."""
    return [event["text_prompt"] for event in server.events() if event["event"] == "conversation admitted"][-1]


def test_livekit_hears_utterances_and_gets_replies(in_turns: Running) -> None:
    report = session(in_turns, "livekit", "realtime", 8)
    assert report["errors"] == []
    assert len(report["history"]) >= 3 and set(report["history"][:-1]) == {"one two"}, "one message an utterance"
    assert report["reply"] == ["one two"], "generate_reply got the next utterance"
    assert persona(in_turns) == "You are kind."
    assert report["seconds"] >= 3 * UTTERANCE_S and report["close_s"] < 4, "it waits 5 s for an open response"


def test_pipecat_hears_utterances(in_turns: Running) -> None:
    report = session(in_turns, "pipecat", "realtime", 8)
    assert report["errors"] == []
    assert report["history"][:2] == ["one two"] * 2
    assert persona(in_turns) == "You are kind.", "Pipecat sends the context's other messages as the user's"
    assert report["seconds"] >= 2 * UTTERANCE_S
    assert {"LLMFullResponseStartFrame", "TTSAudioRawFrame", "TTSTextFrame", "LLMFullResponseEndFrame"} <= set(
        report["kinds"]
    )


def test_openai_agents_hear_utterances_and_can_type_and_interrupt(in_turns: Running) -> None:
    report = session(in_turns, "openai", "realtime", 5)
    already = "conversation_already_has_active_response"  # if the agent speaks while the user types
    assert all(already in error for error in report["errors"])
    assert ["user", "Hello"] in report["history"] and report["history"].count(["assistant", "one two"]) >= 2
    assert report["seconds"] >= 2 * UTTERANCE_S
    assert {"agent_start", "audio", "audio_end", "agent_end"} <= set(report["kinds"])
    assert persona(in_turns) == "You are kind."


@pytest.mark.parametrize("script", ["livekit", "pipecat"])
def test_over_gpt_live_all_audio_comes_back(singing: Running, script: str) -> None:
    report = session(singing, script, "live", 10)
    assert report["errors"] == []
    assert report["seconds"] >= 7, "of 10; 9.5 on a machine that does nothing else"


@voice.needs_speech
@pytest.mark.parametrize(
    ("script", "protocol"), [("livekit", "live"), ("livekit", "realtime"), ("pipecat", "live"), ("openai", "realtime")]
)
def test_a_server_that_transcribes_adds_the_user_to_the_history(
    writing: Running, tmp_path: Path, script: str, protocol: str
) -> None:
    pcm = np.concatenate(
        [voice.silence(10), voice.said("I would like a large pizza with mushrooms."), voice.silence(130)]
    )
    soundfile.write(tmp_path / "user.wav", pcm.ravel(), 24_000)
    report = session(writing, script, protocol, 12, microphone=tmp_path / "user.wav")
    history = f"{report['history']} {report.get('user')}".lower()
    assert "would like" in history and "one two" in history


@pytest.mark.parametrize("protocol", ["live", "realtime"])
def test_livekit_gives_up_after_a_wrong_key(in_turns: Running, protocol: str) -> None:
    before = in_turns.metric('pplex_refused_total{status="401"}')
    report = session(in_turns, "livekit", protocol, 15, key="wrong")
    assert report["failed"] and report["seconds"] == 0
    assert in_turns.metric('pplex_refused_total{status="401"}') - before <= 8, "it does not try for ever"


@pytest.mark.parametrize("framework", ["LiveKit", "Pipecat", "openai-agents"])
def test_the_examples_in_the_documentation_run(in_turns: Running, framework: str) -> None:
    code = re.search(rf"```python\n# {framework}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code
    example = code[1].replace("localhost:8998", f"127.0.0.1:{in_turns.port}").replace("TOKEN", KEY)
    assert "one two" in script_of("example.py", framework.lower(), given=example)
    assert persona(in_turns) == "You are a waiter."
    in_turns.wait_for(lambda: in_turns.state()["used"] == 0)
