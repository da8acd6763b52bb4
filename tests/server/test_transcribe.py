"""Users' words from real voices, a real Whisper model and the real server, with bare clients."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from callers import call, run, speech
from live_caller import LiveCaller, live, pcm16
from realtime_caller import RealtimeCaller, realtime
from serving import COMMAND, Running, Serve
from voice import MODEL, needs_speech, said, silence

from pplex.runtime.bundle import Bundle

WORDS, TRANSCRIPT = "session.input_transcript.delta", "conversation.item.input_audio_transcription.completed"
PIZZA, MORNING = "I would like a large pizza with mushrooms.", "Call me tomorrow morning at seven o'clock."
LEAD = 10  # frames of silence before somebody speaks
OPTION = ("--transcribe", str(MODEL))


@pytest.fixture(scope="module")
def writing(serve: Serve) -> Iterator[Running]:
    with serve(*OPTION, "--slots", "4", "--backlog", "25", "--threads", "1") as server:
        yield server


def chunks(*parts: np.ndarray) -> list[bytes]:
    return [pcm16(frame) for frame in np.concatenate([silence(LEAD), *parts, silence(10)])]


async def words_of(caller: LiveCaller) -> str:
    """The user's next words: the first that come after this call, if none have come."""
    await caller.until(lambda: caller.all(WORDS), "the user's words")
    return "".join(event["delta"] for event in caller.all(WORDS)).lower()


async def converse(server: Running, sentence: str) -> LiveCaller:
    """Say a sentence, and wait for its words."""
    async with live(server.url) as caller:
        await caller.start()
        await caller.talk(chunks(said(sentence)))
        await words_of(caller)
        await caller.ask("session.close", "session.closed")
        return caller


def pid_of(server: Running) -> int:
    """The process that transcribes, now."""
    return [event["pid"] for event in server.events() if event["event"] == "transcriber ready"][-1]


def lives(pid: int) -> bool:
    """Whether a process runs: it may have ended without a parent that notices."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def utterances(server: Running, result: str) -> float:
    return server.metric(f'pplex_utterances_total{{result="{result}"}}')


# Words.


@needs_speech
def test_two_users_at_once_get_their_own_words_with_their_times(writing: Running) -> None:
    async def both() -> list[LiveCaller]:
        return list(await asyncio.gather(converse(writing, PIZZA), converse(writing, MORNING)))

    for caller, own, foreign, sentence in zip(
        run(both()), ("would like", "tomorrow"), ("tomorrow", "would like"), (PIZZA, MORNING), strict=True
    ):
        events = caller.all(WORDS)
        text = "".join(event["delta"] for event in events)
        assert own in text.lower() and foreign not in text.lower()
        assert text.startswith(" "), "deltas can be joined"
        start_ms, end_ms = events[0]["start_ms"], events[-1]["end_ms"]
        assert abs(start_ms - 80 * LEAD) < 800
        assert abs(end_ms - 80 * (LEAD + len(said(sentence)))) < 1200
        assert caller.errors == [] and all(type(event["event_id"]) is str for event in events)
    assert utterances(writing, "heard") >= 2 and writing.metric("pplex_words_seconds_count") >= 2


@needs_speech
def test_clients_of_the_realtime_api_get_words_if_they_ask_for_a_transcription(writing: Running) -> None:
    async def visit(transcription: object, sentence: str, ended: asyncio.Event) -> RealtimeCaller:
        async with realtime(writing.url) as caller:
            await caller.update(instructions="You sell pizza.", audio={"input": {"transcription": transcription}})
            await caller.talk(chunks(said(sentence)))
            if transcription is None:
                await ended.wait()
            else:
                await caller.until(lambda: caller.all(TRANSCRIPT), TRANSCRIPT)
                ended.set()
                item_id = caller.all(TRANSCRIPT)[0]["item_id"]
                await caller.ask("conversation.item.retrieve", "conversation.item.retrieved", item_id=item_id)
            return caller

    async def both() -> list[RealtimeCaller]:
        ended = asyncio.Event()
        visits = (visit({"model": "whisper-1"}, PIZZA, ended), visit(None, MORNING, ended))
        return list(await asyncio.gather(*visits))

    asking, other = run(both())
    (completed,) = asking.all(TRANSCRIPT)
    assert "would like" in completed["transcript"].lower() and completed["usage"]["seconds"] > 1
    (retrieved,) = asking.all("conversation.item.retrieved")
    assert retrieved["item"]["content"][0]["transcript"] == completed["transcript"]
    assert other.all(TRANSCRIPT) == [] and asking.errors == other.errors == []
    assert not [event for event in other.all("conversation.item.added") if event["item"]["role"] == "user"]


@needs_speech
def test_only_what_the_model_hears_is_transcribed(writing: Running) -> None:
    async def visit() -> LiveCaller:
        async with live(writing.url) as caller:
            await caller.start()
            await caller.ask("session.input_audio.mute", "session.input_audio.muted")
            await caller.talk(chunks(said(PIZZA)))
            await caller.ask("session.input_audio.unmute", "session.input_audio.unmuted")
            await caller.talk(chunks(said(MORNING)))
            assert "would like" not in await words_of(caller)
            return caller

    start_ms = run(visit()).all(WORDS)[0]["start_ms"]
    assert abs(start_ms - 80 * (len(chunks(said(PIZZA))) + LEAD)) < 800


@needs_speech
def test_noise_has_no_words(writing: Running) -> None:
    noise = (np.random.default_rng(1).standard_normal((20, 1920)) * 0.05).astype(np.float32)
    before = utterances(writing, "empty")

    async def visit() -> LiveCaller:
        async with live(writing.url) as caller:
            await caller.start()
            await caller.talk(chunks(noise))
            await asyncio.to_thread(writing.wait_for, lambda: utterances(writing, "empty") > before, 20)
            return caller

    assert run(visit()).all(WORDS) == []


@needs_speech
def test_the_original_protocol_does_not_change(writing: Running) -> None:
    before = [utterances(writing, result) for result in ("heard", "empty", "dropped", "failed")]

    async def visit() -> set[str]:
        async with call(writing.url, metadata="1") as caller:
            await caller.handshake()
            await caller.talk(list(np.concatenate([said(PIZZA)[:15], silence(10)])))
            return {kind for kind, _ in caller.messages}

    assert run(visit()) <= {"handshake", "audio", "text", "metadata", "ping"}
    assert [utterances(writing, result) for result in ("heard", "empty", "dropped", "failed")] == before


@needs_speech
def test_the_server_itself_loads_no_whisper(writing: Running) -> None:
    assert "ctranslate2" not in Path(f"/proc/{writing.process.pid}/maps").read_text()
    status = Path(f"/proc/{pid_of(writing)}/stat").read_text().rpartition(")")[2].split()
    assert int(status[16]) == 10, "nice"


# Trouble.


@needs_speech
def test_a_killed_process_comes_back_and_conversations_go_on(writing: Running) -> None:
    async def visit() -> str:
        async with live(writing.url) as caller:
            await caller.start()
            first = pid_of(writing)
            os.kill(first, signal.SIGKILL)
            await caller.talk([pcm16(frame) for frame in speech(15)])
            await caller.replies(15)
            await asyncio.to_thread(writing.wait_for, lambda: pid_of(writing) != first, 30)
            await caller.talk(chunks(said(PIZZA)))
            return await words_of(caller)

    assert "would like" in run(visit())
    assert writing.metric("pplex_transcriber_restarts_total") >= 1


@needs_speech
def test_a_process_that_falls_behind_drops_utterances_and_delays_nobody(writing: Running) -> None:
    word = np.concatenate([said("Pizza."), silence(9)])
    pid, before = pid_of(writing), utterances(writing, "dropped")

    async def visit() -> LiveCaller:
        async with live(writing.url) as caller:
            await caller.start()
            os.kill(pid, signal.SIGSTOP)
            try:
                await caller.talk([pcm16(frame) for frame in np.concatenate([word] * 5 + [silence(2)])])
                await caller.replies(5 * len(word))
                assert caller.all(WORDS) == []
                await asyncio.to_thread(writing.wait_for, lambda: utterances(writing, "dropped") > before, 20)
            finally:
                os.kill(pid, signal.SIGCONT)
            await words_of(caller)
            return caller

    assert run(visit()).errors == []
    assert writing.metric('pplex_dropped_frames_total{reason="outbox"}') == 0


@needs_speech
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_nothing_is_left_when_the_server_ends(serve: Serve, number: int) -> None:
    ended = r"the server ended with (0|-9)"
    with pytest.raises(AssertionError, match=ended), serve(*OPTION, "--slots", "1") as server:
        pid = pid_of(server)
        assert lives(pid)
        server.process.send_signal(number)
        server.process.wait(20)
        server.wait_for(lambda: not lives(pid))


def test_by_default_nothing_is_started(server: Running) -> None:
    assert "ctranslate2" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    assert children == "" and 'thread="transcriber"' not in server.get("/metrics")[1]


# Wrong options.

HIDDEN = "import sys; sys.modules['faster_whisper'] = None\n"


def test_without_faster_whisper_it_says_what_to_install(serve: Serve) -> None:
    message = r"(?s)the server did not start.*pip install 'pplex-export\[transcribe\]'"
    with pytest.raises(AssertionError, match=message), serve("--transcribe", "whisper", prelude=HIDDEN):
        pass


def test_an_unknown_name_ends_the_server_with_the_names_that_are_known(tiny_bundle: Bundle) -> None:
    command = [*COMMAND, str(tiny_bundle.folder), "--port", "0", "--device", "cpu", "--transcribe", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search(r"--transcribe nonsense: the model cannot be loaded: .*base\.en", done.stderr), done.stderr
    assert "Give a folder with a Whisper model" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_without_a_model_is_wrong_usage(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    command = [*COMMAND, str(tiny_bundle.folder), "--transcribe", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "has no model.bin and no tokenizer.json" in done.stderr
