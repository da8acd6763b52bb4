"""GPT-Live against the real server, with a bare client."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import pytest
from bystander import attacked
from callers import FRAME, ask, call, dial, frame, raw, run, speech
from live_caller import PATH, LiveCaller, live, pcm16
from serving import Running, Serve

from pplex.server.g711 import A_LAW, MU_LAW
from pplex.server.resampling import Resampler

AUDIO = "session.output_audio.delta"
WORDS = "good answers for you"


@pytest.fixture(scope="module")
def lively(serve: Serve) -> Iterator[Running]:
    """4 slots, and every client may control its conversation. A client that is late on a busy machine loses nothing."""
    with serve(limits={"silence_after_s": 5.0, "backlog_frames": 25, "pause_s": 30.0}) as running:
        yield running


@pytest.fixture(scope="module")
def short(serve: Serve) -> Iterator[Running]:
    """Every wait is short."""
    with serve(limits={"pause_s": 1.0, "start_s": 0.5, "duration_s": 3.0, "queue": 1, "queue_s": 1.0}) as running:
        yield running


def encoded(form: dict[str, Any], frames: np.ndarray) -> list[bytes]:
    """Frames at 24 kHz as chunks of a format."""
    resampler = None if form["rate"] == 24_000 else Resampler(24_000, form["rate"])
    law = {"audio/pcmu": MU_LAW, "audio/pcma": A_LAW}.get(form["type"])
    chunks = [frame if resampler is None else resampler.process(frame) for frame in frames]
    return [law.encode(chunk) if law else pcm16(chunk) for chunk in chunks]


def is_free(server: Running) -> bool:
    state = server.state()
    return state["used"] == state["queued"] == 0


# A conversation.


@pytest.mark.parametrize(
    ("kind", "rate", "nbytes"),
    [("audio/pcm", 24_000, 3840), ("audio/pcm", 16_000, 2560), ("audio/pcmu", 8_000, 640), ("audio/pcma", 8_000, 640)],
)
def test_audio_both_ways_with_timed_words(lively: Running, kind: str, rate: int, nbytes: int) -> None:
    form = {"type": kind, "rate": rate}

    async def visit() -> LiveCaller:
        async with live(lively.url) as caller:
            session = await caller.start(audio={"format": form})
            assert session["audio"]["format"] == form
            await caller.talk(encoded(form, speech(15)))
            await caller.replies(14)  # a block may wait in the resampler
            closed = await caller.ask("session.close", "session.closed")
            assert (closed["reason"], await caller.closed()) == ("close_requested", 1000)
            return caller

    caller = run(visit())
    assert caller.errors == [] and caller.all("info") == []
    assert len(caller.audio) == nbytes * len(caller.all(AUDIO)) and len(set(caller.audio)) > 10
    words = caller.all("session.output_transcript.delta")
    assert words and all(word["end_ms"] - word["start_ms"] == 80 for word in words)
    assert [word["start_ms"] for word in words] == sorted({word["start_ms"] for word in words})
    assert words[-1]["end_ms"] <= 15 * 80
    lively.wait_for(lambda: is_free(lively))


def test_the_agent_says_the_same_as_over_chat(lively: Running) -> None:
    """The same voice, persona, seed and audio; the words of the persona decide, too."""
    said = np.frombuffer(b"".join(map(pcm16, speech(12))), "<i2").reshape(12, FRAME)

    async def visit() -> tuple[LiveCaller, Any]:
        async with live(lively.url, seed="42", audio_topk="20", not_ours="x") as caller:
            session = await caller.start(instructions="You are kind.", audio={"output": {"voice": "NATM1"}})
            assert session["personaplex"] == {"voice": "NATM1", "seed": 42}
            await caller.talk([frame.tobytes() for frame in said])
            await caller.replies(12)
        lively.wait_for(lambda: is_free(lively))
        asked = {"voice_prompt": "NATM1", "text_prompt": "You are kind.", "seed": "42", "audio_topk": "20"}
        async with call(lively.url, **asked) as chat:
            await (await chat.handshake()).talk(said.astype(np.float32) / 32_768)
            return caller, chat

    caller, chat = run(visit())
    assert caller.audio == pcm16(chat.heard())
    assert caller.text.replace("\ufffd", "") == chat.text.replace("\ufffd", "")


def test_chunks_of_any_size_are_collected(lively: Running) -> None:
    data = b"".join(map(pcm16, speech(10)))
    sizes = [2 * 480] * 10 + [1, 2, 4095, 333, 7]  # 20 ms as Pipecat sends it, then odd ones

    async def visit() -> int:
        async with live(lively.url) as caller:
            await caller.start()
            at = 0
            for size in sizes:
                await caller.append(data[at : at + size])
                at += size
            await caller.append(data[at:])
            await caller.replies(10)
            await asyncio.sleep(0.2)
            return len(caller.all(AUDIO))

    assert run(visit()) == 10


def test_while_a_client_sends_nothing_the_model_hears_silence_in_real_time(server: Running) -> None:
    async def visit() -> LiveCaller:
        async with live(server.url) as caller:
            await caller.start()
            await caller.replies(20)
            assert (await caller.ask("session.input_audio.mute", "session.input_audio.muted"))["event_id"]
            await caller.replies(25)
            return caller

    caller = run(visit())
    times = [at for at, event in zip(caller.times, caller.events, strict=True) if event["type"] == AUDIO]
    assert times[-1] - times[0] > 0.9 * 24 * 0.08, "never faster than the clock"


def test_what_a_client_held_back_while_it_waited_is_dropped_and_does_no_harm(server: Running) -> None:
    """LiveKit sends all that its microphone gave since the connection began, in one burst."""

    async def visit() -> LiveCaller:
        async with live(server.url) as caller:
            await caller.start()
            for frame in speech(50):  # 4 s
                await caller.append(pcm16(frame))
            await caller.replies(4)
            await caller.talk(list(map(pcm16, speech(10))))
            await caller.ask("session.close", "session.closed")
            return caller

    caller = run(visit())
    assert len(caller.all(AUDIO)) <= 20, "at most the backlog of 4 frames came in addition"
    assert caller.errors == []


def test_a_client_may_send_what_it_held_back_in_the_queue(serve: Serve) -> None:
    """More messages than a client may send otherwise; without having waited they are a flood."""

    async def visit(url: str, waits_s: float) -> tuple[int, LiveCaller]:
        async with live(url) as caller:
            callers = [call(url, resume="") for _ in range(4 if waits_s else 0)]
            for each in callers:
                await (await each.__aenter__()).handshake()
            await caller.send("session.start", session={"model": "m"})
            await asyncio.sleep(waits_s)
            for each in callers:
                await each.__aexit__(None, None, None)
            await caller.until(lambda: caller.all("session.started"), "the start")
            with suppress(ConnectionError):
                for _ in range(80):
                    await caller.append(bytes(960))
                if waits_s:
                    await caller.replies(4)
                    await caller.send("session.close")
            return await caller.closed(), caller

    with serve(limits={"messages": 40, "messages_per_s": 30, "resume_s": 0.1}) as narrow:
        code, caller = run(visit(narrow.url, 3.0))
        assert (code, caller.errors) == (1000, [])
        narrow.wait_for(lambda: is_free(narrow))
        assert run(visit(narrow.url, 0.0))[0] in (1006, 1008)


def test_mute_lets_the_model_hear_silence(lively: Running) -> None:
    async def visit(is_muted: bool, user: np.ndarray) -> bytes:
        async with live(lively.url, seed="5") as caller:
            await caller.start()
            if is_muted:
                await caller.ask("session.input_audio.mute", "session.input_audio.muted")
            await caller.talk(list(map(pcm16, user)))
            await caller.replies(len(user))
            return caller.audio

    muted = run(visit(True, speech(10)))
    lively.wait_for(lambda: is_free(lively))
    assert muted == run(visit(False, np.zeros((10, FRAME), np.float32)))


def test_a_commentary_is_said_and_instructions_rebuild_the_memory(lively: Running) -> None:
    async def visit() -> LiveCaller:
        async with live(lively.url, seed="3") as caller:
            await caller.start()
            talking = asyncio.create_task(caller.talk(list(map(pcm16, speech(100)))))
            given = {"delegation_id": None}
            await caller.ask(
                "session.instructions.append", "session.instructions.appended", content="No soup.", **given
            )
            event = await caller.ask("session.commentary.append", "session.commentary.appended", content=WORDS, **given)
            assert event["start_ms"] == event["end_ms"] > 0 and event["start_ms"] % 80 == 0
            await caller.until(lambda: WORDS in caller.text, "the words")
            refused = await caller.ask("session.commentary.append", "error", content="7:30", **given)
            assert "several ways" in refused["error"]["message"]
            talking.cancel()
            return caller

    before = lively.metric('pplex_rebuilds_total{cause="order"}')
    assert run(visit()).all("info") == []
    assert lively.metric('pplex_rebuilds_total{cause="order"}') == before + 1


def test_without_permission_a_commentary_has_no_effect(server: Running) -> None:
    async def visit() -> LiveCaller:
        async with live(server.url) as caller:
            await caller.start()
            for _ in range(2):
                given = {"content": WORDS, "delegation_id": None}
                await caller.ask("session.commentary.append", "session.commentary.appended", **given)
            await caller.replies(5)
            return caller

    caller = run(visit())
    assert len(caller.all("info")) == 1 and caller.errors == []


# Before a conversation.


def test_a_socket_alone_takes_no_slot_and_may_wait(server: Running) -> None:
    async def visit() -> None:
        async with live(server.url) as idle, live(server.url) as caller:
            await asyncio.sleep(0.2)
            assert server.state()["used"] == 0
            await caller.start()
            assert server.state()["used"] == 1
            await idle.start()
            assert server.state()["used"] == 2

    before = server.metric('pplex_conversations_total{protocol="live"}')
    run(visit())
    server.wait_for(lambda: is_free(server))
    assert server.metric('pplex_conversations_total{protocol="live"}') == before + 2


def test_a_socket_without_a_start_is_closed_and_so_are_too_many(short: Running, serve: Serve) -> None:
    async def wait() -> tuple[int, list[Any]]:
        async with live(short.url) as caller:
            return await caller.closed(), caller.events

    assert run(wait()) == (1008, [])

    async def crowd(url: str) -> None:
        async with live(url), live(url) as second:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with live(url):
                    pass
            assert refused.value.status == 503 and refused.value.headers["Retry-After"]
            await second.start()
            async with live(url) as third:  # the second has begun
                await third.start()

    with serve(limits={"spare_connections": 4}) as few:
        run(crowd(few.url))


REFUSED: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", PATH, {}, 426, "upgrade_required"),
    ("GET", f"{PATH}?seed=x", {}, 400, "invalid_value"),
    ("GET", PATH, {"Origin": "https://elsewhere.example"}, 403, "forbidden"),
    ("POST", PATH, {}, 400, "unsupported_transport"),
    ("POST", "/openai/v1/live/sessions", {}, 400, "unsupported_transport"),
    ("GET", f"{PATH}/sess_1/attach", {}, 404, "not_found"),
    ("POST", f"{PATH}/sess_1/hangup", {}, 404, "not_found"),
    ("POST", "/v1/chat/completions", {}, 404, "not_found"),
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
    """The key is not echoed, and not in the log."""

    async def connect(url: str, headers: dict[str, str], protocols: tuple[str, ...]) -> str | None:
        async with live(url, headers, protocols) as caller:
            await caller.start()
            return caller.ws.protocol

    key = "secret-key"
    browser = f"openai-insecure-api-key.{key}"
    with serve("--token", key, "--slots", "2") as guarded:
        for headers, protocols, answer in (
            ({"Authorization": f"Bearer {key}"}, (), None),
            ({"api-key": key}, (), None),
            ({}, ("realtime", browser), "realtime"),
            ({}, (browser,), None),
        ):
            assert run(connect(guarded.url, headers, protocols)) == answer
        for protocols in ((), ("realtime",), ("openai-insecure-api-key.wrong",)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                run(connect(guarded.url, {}, protocols))
            assert refused.value.status == 401
        assert ask(guarded, "/v1/models")[0] == 401
        status, body, _ = ask(guarded, "/v1/models", {"Authorization": f"Bearer {key}"})
        assert (status, json.loads(body)["data"][0]["id"]) == (200, "personaplex")
        assert key not in guarded.log.read_text()


def test_protocols_are_chosen(serve: Serve) -> None:
    with serve("--protocols", "chat") as chat:
        assert ask(chat, PATH)[0] == 404 and ask(chat, "/v1/models")[0] == 404
        assert ask(chat, "/api/chat")[0] == 426
    with serve("--protocols", "live") as only:
        assert ask(only, PATH)[0] == 426 and ask(only, "/api/chat")[0] == 404


# Refusals after the upgrade, and ends.


def test_a_wrong_configuration_closes_and_takes_no_slot(server: Running) -> None:
    async def visit(**session: Any) -> tuple[int, LiveCaller]:
        async with live(server.url) as caller:
            await caller.send("session.start", session={"model": "m", **session})
            return await caller.closed(), caller

    before = server.metric('pplex_refused_total{status="400"}')
    for session, param in (
        ({"audio": {"output": {"voice": "bob"}}}, "session.audio.output.voice"),
        ({"instructions": "a salad and " * 2000}, "session.instructions"),
        ({"model": 1}, "session.model"),
    ):
        code, caller = run(visit(**session))
        assert (code, [param for _, param in caller.errors]) == (1008, [param])
        assert not caller.all("session.closed") and not caller.all("session.started")
    assert server.metric('pplex_refused_total{status="400"}') == before + 3
    server.wait_for(lambda: is_free(server))


def test_full_and_too_long_in_the_queue(short: Running) -> None:
    async def visit() -> None:
        async with live(short.url) as late, live(short.url) as waits:  # both connect while there is room
            callers = [call(short.url, resume="") for _ in range(4)]
            for each in callers:
                await (await each.__aenter__()).handshake()
            await waits.send("session.start", session={"model": "m"})
            short.wait_for(lambda: short.state()["queued"] == 1)
            await late.send("session.start", session={"model": "m"})
            assert (await late.closed(), late.errors) == (1013, [("server_busy", None)])
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with live(short.url):
                    pass
            assert refused.value.status == 503 and refused.value.headers["Retry-After"]
            assert (await waits.closed(), waits.errors) == (1013, [("server_busy", None)])
            assert not waits.all("session.closed")
            for each in callers:
                await each.__aexit__(None, None, None)

    run(visit())
    short.wait_for(lambda: is_free(short))


@pytest.mark.parametrize("speaks", [False, True], ids=["idle", "too long"])
def test_idle_and_too_long_expire(short: Running, speaks: bool) -> None:
    async def visit() -> tuple[int, LiveCaller]:
        async with live(short.url) as caller:
            await caller.start()
            with suppress(ConnectionError):
                await caller.talk([pcm16(frame) for frame in speech(60 if speaks else 0)])
            return await caller.closed(), caller

    code, caller = run(visit())
    (closed,) = caller.all("session.closed")
    assert (code, closed["reason"]) == (1008, "expired")
    assert closed["usage"]["seconds"] > (2 if speaks else 0.3)
    short.wait_for(lambda: is_free(short))


def test_a_shutdown_hangs_up(serve: Serve) -> None:
    async def visit(server: Running) -> tuple[int, int, LiveCaller, LiveCaller]:
        async with live(server.url) as idle, live(server.url) as caller:
            await caller.start()
            server.process.send_signal(signal.SIGTERM)
            ended = await asyncio.gather(idle.closed(), caller.closed())
            return *ended, idle, caller

    with suppress(AssertionError), serve("--drain-seconds", "0.5", "--slots", "2") as server:
        idle_code, code, idle, caller = run(visit(server))
        server.process.wait(20)
    assert (idle_code, idle.events) == (1012, [])
    assert (code, caller.all("session.closed")[0]["reason"]) == (1012, "remote_hangup")


def test_close_and_start_twice_in_every_state(server: Running) -> None:
    async def visit() -> None:
        async with live(server.url) as caller:
            assert (await caller.ask("session.close", "session.closed"))["session"] is None
            assert await caller.closed() == 1000
        async with live(server.url) as caller:
            for _ in range(2):
                await caller.send("session.start", session={"model": "m"})
            await caller.send("session.close")
            assert await caller.closed() == 1000
            assert len(caller.all("session.closed")) == 1
        async with live(server.url) as caller:
            await caller.start()
            again = await caller.ask("session.start", "error", session={"model": "m"}, event_id="again")
            assert (again["error"]["code"], again["client_event_id"]) == ("session_already_started", "again")
            await caller.replies(3)
        async with live(server.url) as caller:
            await caller.send("session.start", session={"model": "m"})  # and leave at once
        async with live(server.url) as caller:
            await caller.ws.send_bytes(b"{}")
            assert await caller.closed() == 1003

    run(visit())
    server.wait_for(lambda: is_free(server))


# Hostile clients.


async def nonsense(server: Running) -> None:
    """Events that cannot be read, before and after the start."""
    texts = ["{", "[]", "[" * 50_000, '{"type":"session.update","session":' + '{"a":' * 5_000, '{"type":"\ud83d"}']
    async with live(server.url) as caller:
        for is_begun in (False, True):
            if is_begun:
                await caller.start()
            before = len(caller.errors)
            for text in texts:
                await caller.ws.send_str(text.encode("utf-8", "replace").decode())
            await caller.send("session.input_audio.append", audio="%%%")
            await caller.until(lambda before=before: len(caller.errors) == before + len(texts) + 1)
        await caller.replies(3)


async def large(server: Running) -> None:
    """A start of nearly 1 MiB is taken; a larger message ends the connection."""
    async with live(server.url) as caller:
        session = await caller.start(client={"x": "a" * 1_000_000})
        assert "client" not in session
        await caller.replies(2)
        with suppress(ConnectionError):
            await caller.send("session.input_audio.append", audio="A" * (2 << 20))
        assert await caller.closed() in (1006, 1009)


async def flood(server: Running) -> None:
    async with live(server.url) as caller:
        await caller.start()
        with suppress(ConnectionError):
            for _ in range(5_000):
                await caller.send("session.update", session={"delegation": None})
        assert await caller.closed() in (1006, 1008)


async def leaves(server: Running) -> None:
    """Starts, and is gone before the answer."""
    for _ in range(8):
        async with live(server.url) as caller:
            await caller.send("session.start", session={"model": "m", "instructions": "You enjoy salad."})


async def never_reads(server: Running) -> None:
    """Asks for large answers, in small messages, and does not read them: their number and their bytes are limited."""
    delegation = {"type": "client", "x": "a" * 60_000}
    start = json.dumps({"type": "session.start", "session": {"model": "m", "delegation": delegation}})
    update = json.dumps({"type": "session.update", "session": {}})
    before = server.metric('pplex_partings_total{cause="slow"}')
    async with dial(server.port, path=PATH, receive_buffer=4096, then=frame(start.encode(), opcode=1)) as (_, writer):
        await asyncio.sleep(0.5)
        with suppress(ConnectionError):
            for _ in range(150):
                writer.write(frame(update.encode(), opcode=1))
                await writer.drain()
        for _ in range(100):
            if server.metric('pplex_partings_total{cause="slow"}') > before:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("it was not disconnected")


@pytest.mark.parametrize("attack", [nonsense, large, flood, leaves, never_reads])
def test_bystanders_are_unharmed(target: Running, unharmed: np.ndarray, attack: Any) -> None:
    attacked(target, unharmed, lambda: attack(target))


def test_a_client_of_50_messages_a_second_is_no_flood(lively: Running) -> None:
    """More than a bucket holds: 20 ms each, twice as fast as real time would be too much for long."""

    async def visit() -> LiveCaller:
        chunk = bytes(160)
        async with live(lively.url) as caller:
            await caller.start(audio={"format": {"type": "audio/pcmu", "rate": 8000}})
            await caller.talk([chunk] * 200, 0.02)
            await caller.replies(45)
            await caller.ask("session.close", "session.closed")
            return caller

    assert run(visit()).errors == []


def test_a_request_that_is_not_http_does_not_matter(server: Running) -> None:
    assert b"400" in raw(server, f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
