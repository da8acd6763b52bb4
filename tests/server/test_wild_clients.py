"""Clients of the reference's protocol: their assumptions and mistakes, because they were written for another server."""

import asyncio
import time
from pathlib import Path

import pytest
from callers import FRAME, FRAME_S, Caller, call, run, speech
from folders import CASES
from serving import Running, Serve

from pplex.server.opus import OpusReceiver, PacketEncoder, PacketPages

REFERENCE = {"audio": "", "early_metadata": "", "voice_prompt": "NATM1.pt", "text_prompt": "You are kind."}


async def say_opus(caller: Caller, frames: int) -> None:
    """Send pages of two packets, 25 messages a second."""
    encoder = PacketEncoder()
    pages, packets = PacketPages(encoder.head), encoder.push(speech(frames).ravel())
    for header in pages.headers():
        await caller.ws.send_bytes(b"\1" + header)
    for i in range(0, len(packets), 2):
        await caller.ws.send_bytes(b"\1" + pages.page(packets[i : i + 2]))
        await asyncio.sleep(FRAME_S / 2)


@pytest.fixture(scope="module")
def short(serve: Serve) -> Running:
    """One slot, and a client may be idle for two seconds."""
    with serve("--slots", "1", "--idle-seconds", "2", "--resume-seconds", "0") as running:
        yield running


# The handshake.


def test_handshake_is_the_first_message_and_comes_when_the_client_can_hear(server: Running) -> None:
    """Its decoder is ready a second after it connects."""

    async def connect(**query: str) -> tuple[float, list[str]]:
        async with call(server.url, **query) as caller:
            began = time.monotonic()
            await caller.handshake()
            return caller.times[0] - began, [kind for kind, _ in caller.messages]

    seconds, kinds = run(connect(**REFERENCE))
    assert kinds[:2] == ["handshake", "metadata"]
    assert seconds > 0.9
    for ours in ({"audio": "s16", "early_metadata": ""}, {"audio": "opus"}):
        seconds, kinds = run(connect(**ours))
        assert kinds[:2] == ["handshake", "metadata"] and seconds < 0.9, ours


def test_a_client_that_speaks_first_is_answered_at_once(server: Running) -> None:
    """Kyutai's client: audio sent before the handshake would delay the whole conversation."""

    async def converse() -> float:
        async with call(server.url, **REFERENCE) as caller:
            began = time.monotonic()
            await say_opus(caller, 1)
            await caller.handshake()
            return caller.times[0] - began

    assert run(converse()) < 0.9


def test_a_waiting_client_gets_its_place_and_pings_only_on_request(short: Running) -> None:
    async def wait() -> tuple[list[str], list[str]]:
        async with call(short.url, resume="") as talking:
            await talking.handshake()
            speaking = asyncio.create_task(talking.talk(speech(60)))
            async with call(short.url, **REFERENCE) as theirs, call(short.url) as ours:
                await ours.until(lambda: ours.metadata("queued") and ours.all("ping"), "its place, and a ping")
                speaking.cancel()
                await talking.ws.close()
                await theirs.handshake()
                return [kind for kind, _ in theirs.messages], [kind for kind, _ in ours.messages]

    theirs, ours = run(wait())
    assert theirs[0] == "handshake", "some clients take any other first message for a failure"
    assert ours[0] == "metadata" and "handshake" not in ours


def test_a_page_holds_a_whole_frame_in_its_first_packet(server: Running) -> None:
    """Some clients decode only the first packet of a page."""

    async def converse() -> Caller:
        async with call(server.url, **REFERENCE) as caller:
            await caller.handshake()
            await say_opus(caller, 5)
            await caller.until(lambda: len(caller.all("audio")) >= 2 + 5)
            return caller

    receiver = OpusReceiver()
    for page in run(converse()).all("audio")[2:]:
        first = page[27 : 27 + page[26]]
        assert len(page) == 27 + len(first) + sum(first) and sum(size < 255 for size in first) == 1
        assert len(receiver.push(page, FRAME).pcm) == FRAME


# Ignored messages.


def test_messages_that_the_reference_ignores_are_counted_and_logged_once(server: Running) -> None:
    async def converse() -> Caller:
        async with call(server.url, codec="opus", voice="NATF2") as caller:
            await caller.handshake()
            for _ in range(3):
                await caller.ws.send_str("hello")
                await caller.ws.send_bytes(b"")
                await caller.ws.send_bytes(b"\x09abc")
            assert len(await caller.talk(speech(3))) == 3
            return caller

    kinds = ("text message", "empty message", "unknown kind", "parameter")
    before = [server.metric(f'pplex_ignored_total{{what="{what}"}}') for what in kinds]
    assert run(converse()).session["ignored"] == ["codec", "voice"]
    after = [server.metric(f'pplex_ignored_total{{what="{what}"}}') for what in kinds]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 3, 3, 2]
    logged = [event["what"] for event in server.events() if event["event"] == "messages ignored"]
    assert sorted(logged[-3:]) == ["empty message", "text message", "unknown kind"]
    admitted = [event for event in server.events() if event["event"] == "conversation admitted"]
    assert admitted[-1]["ignored"] == ["codec", "voice"]


# Invalid audio.

WEBM = (CASES / "webm.webm").read_bytes()


@pytest.mark.parametrize(
    "audio, data, named",
    [
        ("opus", WEBM, "WebM"),
        ("opus", (CASES / "size0.wav").read_bytes()[:5000], "WAV"),
        ("s16", WEBM, "WebM"),
        ("f32", b"OggS" + bytes(4096), "Ogg"),
    ],
)
def test_invalid_audio_is_named_counted_and_closed(short: Running, audio: str, data: bytes, named: str) -> None:
    async def converse() -> tuple[Caller, int]:
        async with call(short.url, audio=audio) as caller:
            await caller.handshake()
            await caller.ws.send_bytes(b"\1" + data[:2001])
            return caller, await caller.closed()

    before = short.metric("pplex_bad_audio_total")
    caller, code = run(converse())
    assert code == 1007
    assert f"The audio is {named}" in caller.all("error")[0].decode()
    assert short.metric("pplex_bad_audio_total") == before + 1
    short.wait_for(lambda: short.state()["used"] == 0)


@pytest.mark.parametrize("audio", ["opus", "s16"])
def test_another_container_is_named_however_it_is_divided(short: Running, audio: str) -> None:
    async def converse() -> tuple[Caller, int]:
        async with call(short.url, audio=audio) as caller:
            await caller.handshake()
            for part in (b"", WEBM[:2], WEBM[2:4], WEBM[4:200]):
                await caller.ws.send_bytes(b"\1" + part)
            return caller, await caller.closed()

    caller, code = run(converse())
    assert code == 1007 and "The audio is WebM" in caller.all("error")[0].decode()


def test_endless_damage_counts_as_idle(short: Running) -> None:
    """Messages arrive but contain no audio: the slot is not kept for ever."""

    async def converse() -> tuple[Caller, int]:
        async with call(short.url, audio="opus") as caller:
            await caller.handshake()
            await say_opus(caller, 3)
            for _ in range(100):
                if caller.ws.closed:
                    break
                await caller.ws.send_bytes(b"\1" + b"no page")
                await asyncio.sleep(0.05)
            return caller, await caller.closed()

    before = short.metric("pplex_bad_audio_total")
    caller, code = run(converse())
    assert (code, caller.all("error")) == (1008, [b"No audio for 2 s."])
    assert short.metric("pplex_bad_audio_total") > before + 10


def test_the_webm_case_is_webm() -> None:
    assert Path(CASES / "webm.webm").stat().st_size < 100_000 and WEBM[:4] == b"\x1aE\xdf\xa3"
