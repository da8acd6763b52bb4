"""The Realtime API against the real server, with a bare client. The agent speaks in turns, so that utterances end."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any

import aiohttp
import numpy as np
import pytest
import turns
from bystander import attacked
from callers import FRAME, ask, call, dial, frame, run, speech
from event_caller import pcm16
from realtime_caller import PATH, RealtimeCaller, realtime
from serving import Running, Serve

from pplex.server.g711 import A_LAW, MU_LAW
from pplex.server.resampling import Resampler
from pplex.server.utterances import PAUSE_FRAMES

DELTA, WORD = "response.output_audio.delta", "response.output_audio_transcript.delta"
OPENING = ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"]
CLOSING = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
PCM, MU, A = {"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}
LAWS = {"audio/pcmu": MU_LAW, "audio/pcma": A_LAW}


@pytest.fixture(scope="module")
def lively(serve: Serve) -> Iterator[Running]:
    """4 slots, an agent that speaks in turns, and clients that may control it. A late client loses nothing."""
    limits = {"silence_after_s": 2.0, "backlog_frames": 25, "pause_s": 30.0}
    with serve(limits=limits, prelude=turns.PRELUDE) as running:
        yield running


@pytest.fixture(scope="module")
def short(serve: Serve) -> Iterator[Running]:
    """Every wait is short."""
    limits = {"pause_s": 1.0, "start_s": 1.0, "duration_s": 3.0, "queue": 1, "queue_s": 1.0}
    with serve(limits=limits, prelude=turns.PRELUDE) as running:
        yield running


def is_free(server: Running) -> bool:
    state = server.state()
    return state["used"] == state["queued"] == 0


def encoded(form: dict[str, Any], frames: np.ndarray) -> list[bytes]:
    law = LAWS.get(form["type"])
    resampler = Resampler(24_000, 8_000)
    return [law.encode(resampler.process(each)) if law else pcm16(each) for each in frames]


def decoded(form: dict[str, Any], codes: bytes) -> np.ndarray:
    law = LAWS.get(form["type"])
    return law.decode(codes) if law else np.frombuffer(codes, "<i2") / np.float32(32_768)


def shape(events: list[dict[str, Any]]) -> list[str]:
    """The kinds of events in order, without repetitions of audio and words."""
    names = ["speech" if event["type"] in (DELTA, WORD) else event["type"] for event in events]
    return [name for name, _ in groupby(names)]


# A conversation.


@pytest.mark.parametrize(("hears", "says"), [(PCM, PCM), (MU, MU), (A, A), (MU, PCM)], ids=["pcm", "mu", "a", "mu-pcm"])
def test_utterances_are_responses_in_every_format(lively: Running, hears: dict[str, Any], says: dict[str, Any]) -> None:
    """Nothing is sent between utterances; each is whole, and ends within a second after the agent."""

    async def visit() -> RealtimeCaller:
        async with realtime(lively.url, model="m") as caller:
            session = await caller.update(
                instructions="You are kind.", audio={"input": {"format": hears}, "output": {"format": says}}
            )
            assert (session["audio"]["input"]["format"], session["audio"]["output"]["format"]) == (hears, says)
            await caller.talk(encoded(hears, speech(2 * turns.PERIOD)))
            await caller.until(lambda: len(caller.all("response.done")) == 2, "two utterances")
            return caller

    caller = run(visit())
    assert caller.errors == []
    assert shape(caller.events) == ["session.created", "session.updated", *2 * [*OPENING, "speech", *CLOSING]]
    for done in caller.all("response.done"):
        assert done["response"]["output"][0]["content"] == [{"type": "output_audio", "transcript": "one two"}]
        assert done["response"]["status"] == "completed"
    deltas = caller.all(DELTA)
    assert len(deltas) == 2 * (turns.SPOKEN + PAUSE_FRAMES)
    rate = 24_000 if says == PCM else 8_000
    heard = decoded(says, caller.audio)
    assert len(heard) == len(deltas) * FRAME * rate // 24_000
    spoken = heard[: turns.SPOKEN * FRAME * rate // 24_000]
    assert 0.13 < np.sqrt(np.mean(np.square(spoken))) < 0.15, "the agent's tone"
    lively.wait_for(lambda: is_free(lively))
    assert [event for event in lively.events() if event["event"] == "conversation ended"][-1]["cause"] == "client"


def test_typed_text_alone_gets_an_answer_and_an_order_on_the_wire(lively: Running) -> None:
    """As a client without a microphone: nothing is sent but events. Frames are those of silence, in real time."""

    async def visit() -> RealtimeCaller:
        async with realtime(lively.url) as caller:
            content = [{"type": "input_text", "text": "Hello"}]
            item = {"type": "message", "role": "user", "content": content}
            await caller.ask("conversation.item.create", "conversation.item.done", item=item)
            assert (await caller.respond(metadata={"client_event_id": "c"}))["metadata"] == {"client_event_id": "c"}
            await caller.until(lambda: caller.all("response.done"), "the answer")
            return caller

    caller = run(visit())
    assert shape(caller.events)[3:] == [*OPENING, "speech", *CLOSING]
    done = caller.all("response.done")[0]["response"]
    assert done["metadata"] == {"client_event_id": "c"} and done["output"][0]["content"][0]["transcript"] == "one two"
    audio = [at for at, event in zip(caller.times, caller.events, strict=True) if event["type"] == DELTA]
    assert audio[-1] - audio[0] > 0.9 * 0.08 * (len(audio) - 1), "never faster than the clock"


def test_the_same_seed_says_the_same_as_over_chat(server: Running) -> None:
    """The same voice, persona, seed and audio. The tiny model babbles, so that all is one utterance."""
    said = np.frombuffer(b"".join(map(pcm16, speech(12))), "<i2").reshape(12, FRAME)

    async def visit() -> tuple[RealtimeCaller, Any]:
        async with realtime(server.url, seed="42", audio_topk="20", model="m", not_ours="x") as caller:
            item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]}
            await caller.ask("conversation.item.create", "conversation.item.done", item=item)
            session = await caller.update(instructions="You are kind.", audio={"output": {"voice": "NATM1"}})
            assert session["personaplex"] == {"voice": "NATM1", "seed": 42} and session["model"] == "m"
            await caller.respond()
            server.wait_for(lambda: server.metric('pplex_conversations_total{protocol="realtime"}') > before)
            await caller.talk([each.tobytes() for each in said])
            await caller.replies(12)
        server.wait_for(lambda: is_free(server))
        asked = {"voice_prompt": "NATM1", "text_prompt": "You are kind.\nBe brief.", "seed": "42", "audio_topk": "20"}
        async with call(server.url, **asked) as chat:
            await (await chat.handshake()).talk(said.astype(np.float32) / 32_768)
            return caller, chat

    before = server.metric('pplex_conversations_total{protocol="realtime"}')
    caller, chat = run(visit())
    assert caller.audio[: 2 * 12 * FRAME] == pcm16(chat.heard())
    assert chat.text.replace("\ufffd", "").strip().startswith(caller.text.replace("\ufffd", "")[:10])


def test_audio_alone_starts_the_conversation_after_a_second(lively: Running) -> None:
    async def visit() -> RealtimeCaller:
        async with realtime(lively.url) as caller:
            assert lively.state()["used"] == 0, "a socket alone takes no slot"
            await caller.append(bytes(960))
            lively.wait_for(lambda: lively.state()["used"] == 1)
            await caller.talk([bytes(3840)] * 30)
            await caller.until(lambda: caller.all("response.done"), "an utterance")
            return caller

    assert run(visit()).errors == []
    lively.wait_for(lambda: is_free(lively))


def test_settings_in_a_row_beside_audio_all_count(lively: Running) -> None:
    """As LiveKit: voice, instructions, tools, and audio from the beginning."""

    async def visit() -> dict[str, Any]:
        async with realtime(lively.url) as caller:
            talking = asyncio.create_task(caller.talk([bytes(3840)] * 100))
            for session in (
                {"audio": {"output": {"voice": "NATM1"}}},
                {"instructions": "You are kind."},
                {"tools": [{"type": "function", "name": "f"}]},
            ):
                await caller.send("session.update", session={"type": "realtime", **session})
                await asyncio.sleep(0.05)
            await caller.until(lambda: len(caller.all("session.updated")) == 3, "the answers")
            lively.wait_for(lambda: lively.state()["used"] == 1)
            session = await caller.update(audio={"output": {"voice": "NATF0"}}, instructions="Other.")
            talking.cancel()
            return session

    session = run(visit())
    assert (session["instructions"], session["audio"]["output"]["voice"]) == ("You are kind.", "NATM1")
    assert session["tools"] == [{"type": "function", "name": "f"}]
    lively.wait_for(lambda: is_free(lively))


def test_a_cancelled_response_ends_and_the_next_utterance_is_another(lively: Running) -> None:
    async def visit() -> RealtimeCaller:
        async with realtime(lively.url) as caller:
            first = await caller.respond()
            await caller.until(lambda: WORD in [event["type"] for event in caller.events], "a word")
            again = await caller.ask("response.create", "error", event_id="again")
            assert again["error"]["code"] == "conversation_already_has_active_response"
            done = await caller.ask("response.cancel", "response.done", response_id=first["id"])
            assert done["response"]["status"] == "cancelled"
            twice = await caller.ask("response.cancel", "error", event_id="twice")
            assert twice["error"]["message"].startswith("Cancellation failed")
            assert (twice["error"]["code"], twice["error"]["event_id"]) == ("response_cancel_not_active", "twice")
            await caller.until(lambda: len(caller.all("response.done")) == 2, "the next utterance")
            return caller

    caller = run(visit())
    deltas = [event["response_id"] for event in caller.all(DELTA)]
    assert [name for name, _ in groupby(deltas)] == [done["response"]["id"] for done in caller.all("response.done")]
    at = [event["type"] for event in caller.events].index("response.done")
    assert DELTA not in [event["type"] for event in caller.events[at : at + 3]], "no audio after the end"


def test_with_permission_words_are_said_and_without_it_they_are_refused(target: Running, server: Running) -> None:
    words = {"say": "good answers for you"}

    async def visit(url: str) -> RealtimeCaller:
        async with realtime(url, seed="3") as caller:
            await caller.send("response.create", response={"personaplex": words})
            await caller.until(lambda: words["say"] in caller.text or caller.errors, "the words")
            return caller

    assert run(visit(target.url)).errors == []
    target.wait_for(lambda: is_free(target))
    assert run(visit(server.url)).errors == [("unsupported_parameter", "response.personaplex.say")]


def test_what_cannot_be_said_fails_the_response_only(lively: Running) -> None:
    async def visit() -> RealtimeCaller:
        async with realtime(lively.url) as caller:
            await caller.respond()
            await caller.until(lambda: caller.all("response.done"), "an utterance")
            await caller.send("response.create", response={"personaplex": {"say": "7:30"}})
            await caller.until(lambda: caller.errors, "the refusal")
            await caller.until(lambda: len(caller.all("response.done")) == 3, "the next utterance")
            return caller

    caller = run(visit())
    assert [done["response"]["status"] for done in caller.all("response.done")] == ["completed", "failed", "completed"]
    assert caller.errors == [("invalid_value", "response.personaplex.say")]


def test_speech_events_only_if_the_server_is_asked_for_them(serve: Serve, server: Running) -> None:
    async def visit(url: str) -> list[str]:
        async with realtime(url) as caller:
            await caller.respond()
            await caller.talk([pcm16(each) for each in speech(10)] + [bytes(3840)] * 12)
            await asyncio.sleep(0.5)
            return [event["type"] for event in caller.events if "buffer" in event["type"]]

    assert run(visit(server.url)) == []
    with serve("--slots", "1", "--realtime-vad", "--backlog", "25", "--protocols", "realtime") as telling:
        expected = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
        assert run(visit(telling.url)) == expected
        assert ask(telling, "/v1/live/sessions")[0] == ask(telling, "/api/chat")[0] == 404


# Before the upgrade.

REFUSED: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", PATH, {}, 426, "upgrade_required"),
    ("GET", f"{PATH}?seed=x", {}, 400, "invalid_value"),
    ("GET", f"{PATH}?intent=transcription", {}, 400, "invalid_value"),
    ("GET", f"{PATH}?call_id=rtc_1", {}, 400, "invalid_value"),
    ("GET", PATH, {"Origin": "https://elsewhere.example"}, 403, "forbidden"),
    ("POST", PATH, {}, 404, "not_found"),
    ("POST", f"{PATH}/calls", {}, 404, "not_found"),
    ("POST", f"{PATH}/client_secrets", {}, 404, "not_found"),
    ("POST", f"{PATH}/sessions", {}, 404, "not_found"),
    ("GET", f"{PATH}/translations", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), REFUSED)
def test_a_request_is_refused_as_openai_does(
    server: Running, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    answered, body, _ = ask(server, path, headers, method=method)
    problem = json.loads(body)["error"]
    assert (answered, problem["code"], problem["param"]) == (status, code, None)
    assert problem["message"] and problem["type"] == "invalid_request_error"


def test_every_way_to_send_a_key(serve: Serve) -> None:
    async def connect(url: str, headers: dict[str, str], protocols: tuple[str, ...]) -> str | None:
        async with realtime(url, headers, protocols, graceful_close="true") as caller:
            return caller.ws.protocol

    key = "secret-key"
    browser = f"openai-insecure-api-key.{key}"
    with serve("--token", key, "--slots", "1", "--protocols", "realtime") as guarded:
        for headers, protocols, answer in (
            ({"Authorization": f"Bearer {key}"}, (), None),
            ({"api-key": key}, (), None),
            ({}, ("realtime", browser), "realtime"),
        ):
            assert run(connect(guarded.url, headers, protocols)) == answer
        for protocols in ((), ("realtime", "openai-insecure-api-key.wrong")):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                run(connect(guarded.url, {}, protocols))
            assert refused.value.status == 401
        assert ask(guarded, "/v1/models", {"Authorization": f"Bearer {key}"})[0] == 200
        assert key not in guarded.log.read_text()


# Ends.


def test_a_full_server_refuses_before_the_upgrade(short: Running) -> None:
    """After it, LiveKit would come back for ever. A socket that waits may still be closed: 1013."""

    async def visit() -> None:
        async with realtime(short.url) as late, realtime(short.url) as waits:  # both connect while there is room
            callers = [call(short.url, resume="") for _ in range(4)]
            for each in callers:
                await (await each.__aenter__()).handshake()
            assert (await waits.respond())["status"] == "in_progress"
            short.wait_for(lambda: short.state()["queued"] == 1)
            assert (await waits.update(tools=[]))["tools"] == [], "every update is answered at once"
            await late.send("response.create")
            assert (await late.closed(), late.errors) == (1013, [("server_busy", None)])
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with realtime(short.url):
                    pass
            assert refused.value.status == 503 and refused.value.headers["Retry-After"]
            assert (await waits.closed(), waits.errors) == (1013, [("server_busy", None)])
            for each in callers:
                await each.__aexit__(None, None, None)

    run(visit())
    short.wait_for(lambda: is_free(short))


@pytest.mark.parametrize("state", ["not started", "idle", "too long"])
def test_sessions_expire(short: Running, state: str) -> None:
    async def visit() -> tuple[int, RealtimeCaller]:
        async with realtime(short.url) as caller:
            if state != "not started":
                await caller.respond()
            with suppress(ConnectionError):
                await caller.talk([bytes(3840)] * (60 if state == "too long" else 0))
            return await caller.closed(), caller

    code, caller = run(visit())
    assert (code, caller.errors) == (1008, [("session_expired", None)])
    created, done = len(caller.all("response.created")), len(caller.all("response.done"))
    assert created == done == {"not started": 0, "idle": 1, "too long": created}[state]
    short.wait_for(lambda: is_free(short))


def test_a_shutdown_hangs_up(serve: Serve) -> None:
    async def visit(server: Running) -> tuple[list[int], RealtimeCaller]:
        async with realtime(server.url) as idle, realtime(server.url) as caller:
            await caller.respond()
            await caller.replies(1)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(idle.closed(), caller.closed()), caller

    with suppress(AssertionError), serve("--drain-seconds", "0.5", "--slots", "2") as server:
        codes, caller = run(visit(server))
        server.process.wait(20)
    assert (codes, caller.errors) == ([1001, 1001], [])
    assert caller.all("response.done")[-1]["response"]["status"] == "incomplete"


def test_leaving_in_every_state_frees_the_slot(server: Running) -> None:
    async def visit() -> None:
        async with realtime(server.url):
            pass
        async with realtime(server.url) as caller:
            await caller.append(bytes(960))
        async with realtime(server.url) as caller:
            await caller.send("response.create")  # and leave at once
        async with realtime(server.url) as caller:
            await caller.respond()
            await caller.replies(2)
        async with realtime(server.url) as caller:
            await caller.respond()
            await caller.replies(2)
            await caller.ask("response.cancel", "response.done")
        async with realtime(server.url) as caller:
            await caller.ws.send_bytes(b"{}")
            assert await caller.closed() == 1003

    run(visit())
    server.wait_for(lambda: is_free(server))


# Hostile clients.


async def nonsense(server: Running) -> None:
    """Events that cannot be read, before and after the start."""
    texts = ["{", "[]", "[" * 50_000, '{"type":"session.update","session":' + '{"a":' * 5_000, '{"type":"\ud83d"}']
    async with realtime(server.url) as caller:
        for is_begun in (False, True):
            if is_begun:
                await caller.respond()
            before = len(caller.errors)
            for text in texts:
                await caller.ws.send_str(text.encode("utf-8", "replace").decode())
            await caller.send("input_audio_buffer.append", audio="%%%")
            await caller.until(lambda before=before: len(caller.errors) == before + len(texts) + 1)
        await caller.replies(3)


async def large(server: Running) -> None:
    """Settings of nearly 1 MiB are taken; a larger message ends the connection."""
    async with realtime(server.url) as caller:
        await caller.update(unknown="a" * 1_000_000)
        await caller.respond()
        await caller.replies(2)
        with suppress(ConnectionError):
            await caller.send("input_audio_buffer.append", audio="A" * (2 << 20))
        assert await caller.closed() in (1006, 1009)


async def flood(server: Running) -> None:
    async with realtime(server.url) as caller:
        await caller.respond()
        with suppress(ConnectionError):
            for _ in range(5_000):
                await caller.send("session.update", session={"type": "realtime"})
        assert await caller.closed() in (1006, 1008)


async def leaves(server: Running) -> None:
    """Starts, and is gone before the answer."""
    for _ in range(8):
        async with realtime(server.url) as caller:
            await caller.update(instructions="You enjoy salad.")
            await caller.send("response.create")


async def never_reads(server: Running) -> None:
    """Asks for large answers, in small messages, and does not read them: their number and their bytes are limited."""
    tools = {"type": "session.update", "session": {"type": "realtime", "tools": [{"x": "a" * 100_000}]}}
    texts = ['{"type":"response.create"}', json.dumps(tools)]
    texts += ['{"type":"session.update","session":{"type":"realtime"}}'] * 150
    before = server.metric('pplex_partings_total{cause="slow"}')
    async with dial(server.port, path=PATH, receive_buffer=4096) as (_, writer):
        with suppress(ConnectionError):
            for text in texts:
                writer.write(frame(text.encode(), opcode=1))
                await writer.drain()
                await asyncio.sleep(0.5 if "create" in text else 0)
        for _ in range(100):
            if server.metric('pplex_partings_total{cause="slow"}') > before:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("it was not disconnected")


@pytest.mark.parametrize("attack", [nonsense, large, flood, leaves, never_reads])
def test_bystanders_are_unharmed(target: Running, unharmed: np.ndarray, attack: Any) -> None:
    attacked(target, unharmed, lambda: attack(target))
