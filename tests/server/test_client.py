"""`pplex.server.client` in a program, with the real server."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from callers import FRAME, call, run, speech
from network import network
from serving import Running, Serve

from pplex.runtime.errors import AudioError, PplexError
from pplex.server.client import (
    Audio,
    ClosedError,
    Conversation,
    Dropped,
    Event,
    LostError,
    Queued,
    RefusedError,
    ServerError,
    Text,
    UnreachableError,
    connect,
)

DOCS = Path(__file__).parents[2] / "docs/protocol.md"
TOKEN = "a token"


@pytest.fixture(scope="module")
def strict(serve: Serve) -> Iterator[Running]:
    """A server with one slot, a queue of one, a token, and TLS with a self-signed certificate."""
    with serve("--slots", "1", "--queue", "1", "--token", TOKEN, "--self-signed") as running:
        yield running


async def hear(conversation: Conversation, frames: int) -> list[Event]:
    """Events up to and including the reply to the last of `frames` frames."""
    events: list[Event] = []
    while frames:
        events.append(await anext(conversation))
        frames -= isinstance(events[-1], Audio)
    return events


def pcm_of(events: list[Event]) -> np.ndarray:
    return np.array([event.pcm for event in events if isinstance(event, Audio)])


@pytest.mark.parametrize("audio", ["f32", "s16", "opus"])
def test_chunks_of_any_size_give_one_reply_per_frame(server: Running, audio: str) -> None:
    async def converse() -> None:
        settings = {"voice": "VARF2", "persona": "You are kind.", "seed": 7, "text_topk": 20, "audio_temperature": 0.5}
        async with connect(server.url, audio=audio, **settings) as conversation:
            assert (conversation.voice, conversation.seed, conversation.audio) == ("VARF2", 7, audio)
            assert (conversation.sample_rate, conversation.frame_size) == (24_000, FRAME)
            assert conversation.id and conversation.resume and conversation.resume_seconds == 2
            assert not conversation.resumed and conversation.ignored == ()
            user = speech(3).reshape(-1)
            for piece in np.split(user, [1, 700, 2000, 5000]):
                await conversation.send(piece)
            events = await hear(conversation, 3)
        pcm = pcm_of(events)
        assert (pcm.shape, pcm.dtype) == ((3, FRAME), np.float32) and (np.abs(pcm).max(axis=1) > 0.01).all()
        assert {type(event) for event in events} <= {Audio, Text}

    run(converse())


def test_a_seed_repeats_a_conversation(server: Running) -> None:
    async def said(seed: int) -> np.ndarray:
        async with connect(f"{server.url}/api/chat", seed=seed, voice="none") as conversation:
            assert conversation.voice is None
            await conversation.send(speech(2).reshape(-1))
            return pcm_of(await hear(conversation, 2))

    first, again, other = (run(said(seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_a_burst_is_answered_or_reported_as_dropped(server: Running) -> None:
    async def converse() -> None:
        async with connect(server.url) as conversation:
            for frame in speech(20):
                await conversation.send(frame)
            answered = dropped = 0
            async for event in conversation:
                answered += isinstance(event, Audio)
                dropped = event.frames if isinstance(event, Dropped) else dropped
                if answered + dropped == 20:
                    break
            assert dropped > 0

    run(converse())


@pytest.mark.parametrize("pcm", [np.zeros(FRAME, np.int16), np.zeros((1, FRAME), np.float32), np.full(4, np.nan)])
def test_invalid_audio_is_not_sent(server: Running, pcm: np.ndarray) -> None:
    async def converse() -> None:
        async with connect(server.url) as conversation:
            with pytest.raises(AudioError):
                await conversation.send(pcm)

    run(converse())


# Refused.


async def attempt(url: str, **settings: object) -> None:
    async with connect(url, **settings):  # type: ignore[arg-type]
        pass


def test_a_refusal_has_the_status_and_the_servers_reason(server: Running, strict: Running) -> None:
    with pytest.raises(RefusedError, match="'Nobody'") as refusal:
        run(attempt(server.url, voice="Nobody"))
    assert (refusal.value.status, refusal.value.retry_after_s) == (400, None)
    with pytest.raises(RefusedError, match="is over") as refusal:
        run(attempt(server.url, resume="no key"))
    assert refusal.value.status == 404
    with pytest.raises(RefusedError, match="token") as refusal:
        run(attempt(strict.url, token="another", ssl=False))
    assert refusal.value.status == 401


@pytest.mark.parametrize("settings", [{"token": "another"}, {"token": TOKEN, "voice": "Nobody"}])
def test_a_refusal_leaves_no_socket_open(strict: Running, settings: dict[str, str]) -> None:
    async def refused() -> None:
        before = sum(file.is_socket() for file in Path("/proc/self/fd").iterdir())
        with pytest.raises(RefusedError):
            await attempt(strict.url, ssl=False, **settings)
        assert sum(file.is_socket() for file in Path("/proc/self/fd").iterdir()) == before

    run(refused())


def test_an_untrusted_certificate_is_named(strict: Running) -> None:
    with pytest.raises(UnreachableError, match=r"certificate.*\n.*ssl=False"):
        run(attempt(strict.url.replace("https", "wss"), token=TOKEN))


@pytest.mark.parametrize("url", ["localhost:8998", "ftp://localhost", "ws://127.0.0.1:1"])
def test_an_unreachable_server_is_reported(url: str) -> None:
    with pytest.raises(UnreachableError, match=url):
        run(attempt(url))


def test_impossible_settings_are_refused(server: Running) -> None:
    with pytest.raises(AudioError, match="opus, s16, f32"):
        run(attempt(server.url, audio="mp3"))
    with pytest.raises(PplexError, match="leave out seed"):
        run(attempt(server.url, resume="key", seed=1))


def test_waiting_shows_the_position_and_a_full_queue_says_when_to_retry(strict: Running) -> None:
    async def converse() -> None:
        access = {"token": TOKEN, "ssl": False}
        positions: asyncio.Queue[int] = asyncio.Queue()
        async with connect(strict.url, **access):  # type: ignore[arg-type]
            waiting = asyncio.create_task(attempt(strict.url, on_queued=positions.put_nowait, **access))
            assert await positions.get() == 1
            with pytest.raises(RefusedError) as refusal:
                await attempt(strict.url, **access)
            assert refusal.value.status == 503 and refusal.value.retry_after_s
        await waiting

    run(converse())


# Ended, lost and resumed.


def test_a_conversation_ended_by_the_server_says_why_and_accepts_nothing(server: Running) -> None:
    async def converse() -> None:
        async with connect(server.url) as conversation, connect(server.url, resume=conversation.resume) as other:
            assert other.resumed and (other.id, other.seed) == (conversation.id, conversation.seed)
            with pytest.raises(ClosedError, match="another connection") as end:
                await hear(conversation, 1)
            assert end.value.code == 4001 and "another connection" in end.value.reason
            with pytest.raises(ClosedError):
                await conversation.send(speech(1)[0])
            with pytest.raises(ClosedError):
                await anext(conversation)
            await other.send(speech(1)[0])
            await hear(other, 1)

    run(converse())


def test_leaving_keeps_the_conversation_and_closing_ends_it(server: Running) -> None:
    async def converse() -> None:
        async with connect(server.url, seed=3) as conversation:
            await conversation.leave()
            with pytest.raises(StopAsyncIteration):
                await anext(conversation)
        async with connect(server.url, resume=conversation.resume, audio="s16") as resumed:
            assert (resumed.id, resumed.seed, resumed.audio) == (conversation.id, 3, "s16")
        with pytest.raises(RefusedError) as refusal:
            await attempt(server.url, resume=conversation.resume)
        assert refusal.value.status == 404

    run(converse())


@pytest.mark.parametrize("audio", ["f32", "s16", "opus"])
def test_integers_as_floats_are_not_sent(server: Running, audio: str) -> None:
    async def converse() -> None:
        async with connect(server.url, audio=audio) as conversation:
            with pytest.raises(AudioError, match="divide them by 32,768"):
                await conversation.send(np.full(1920, 9830, np.float32))
            with pytest.raises(AudioError, match="NaN or infinite"):
                await conversation.send(np.full(1920, np.nan, np.float32))

    run(converse())


@pytest.mark.parametrize("audio", ["f32", "opus"])
def test_a_lost_connection_is_reopened(server: Running, audio: str) -> None:
    async def converse() -> None:
        async with network(server) as (url, way), connect(url, audio=audio, reconnect=True) as conversation:
            name = conversation.id
            for connections in range(3):
                listening = asyncio.create_task(hear(conversation, 2))
                while not listening.done():  # audio sent without a connection is lost
                    await conversation.send(speech(1)[0])
                    await asyncio.sleep(0.02)
                assert len(pcm_of(await listening)) == 2
                assert (conversation.id, conversation.reconnected) == (name, connections)
                assert conversation.resumed == (connections > 0)
                way.cut()

    run(converse())


def test_a_lost_connection_is_an_error_without_reconnecting(server: Running) -> None:
    async def converse() -> None:
        async with network(server) as (url, way), connect(url) as conversation:
            way.cut()
            with pytest.raises(LostError):
                await hear(conversation, 1)
            with pytest.raises(LostError):
                await conversation.send(speech(1)[0])
            async with connect(server.url, resume=conversation.resume) as resumed:
                assert resumed.resumed

    run(converse())


def test_reconnecting_stops_when_the_conversation_has_ended(server: Running) -> None:
    async def converse() -> None:
        async with network(server) as (url, way), connect(url, reconnect=True) as conversation:
            async with call(server.url, resume=str(conversation.resume)) as taker:
                await taker.handshake()
                way.cut()  # before it hears of the takeover
            with pytest.raises(ServerError):
                await hear(conversation, 1)

    run(converse())


def test_events_compare_by_value() -> None:
    assert Text("a") == Text("a") and Dropped(1) != Dropped(2) and Queued(1) == Queued(1)


# Events, imports, and the example.


def test_client_imports_neither_torch_nor_a_codec() -> None:
    code = "import sys, pplex.server.client; print({'torch', 'onnx', 'av', 'onnxruntime', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_example_of_the_documentation_runs(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert "ws://localhost:8998" in example
    soundfile.write(tmp_path / "user.wav", speech(6).reshape(-1), 24_000)
    monkeypatch.chdir(tmp_path)
    exec(example.replace("ws://localhost:8998", server.url), {})
    heard = [line for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"[01]\.\d+", line)]
    assert len(heard) == 6
