"""Hostile messages: whatever a client sends, the server goes on and a bystander's conversation does not change."""

import asyncio
import os
from contextlib import suppress

import numpy as np
import pytest
from bystander import attacked
from callers import FRAME, FRAME_S, call, dial, frame, listen, speech
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Running

from pplex.server.ogg import OpusHead, PageWriter, tags_packet
from pplex.server.opus import OpusSender

SLOW = dict(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)

NAN = np.array([0.0, np.nan, 0.1], "<f4").tobytes()
INFINITE = np.array([np.inf], "<f4").tobytes()
BROKEN_RULES: dict[str, tuple[int, list[bytes | str]]] = {  # the expected close code, and the messages that cause it
    "flood of text": (1008, ["hello"] * 3000),
    "flood of empty messages": (1008, [b""] * 3000),
    "flood of an unknown kind": (1008, [b"\x07abc"] * 3000),
    "NaN": (1007, [b"\x01" + NAN]),
    "infinity": (1007, [b"\x01" + INFINITE]),
    "16-bit integers as floats": (1007, [b"\x01" + np.full(480, 9830, "<f4").tobytes()]),
    "far above full scale": (1007, [b"\x01" + np.full(480, -3e38, "<f4").tobytes()]),
    "part of a sample": (1007, [b"\x01abc"]),
    "too large": (1009, [b"\x01" + bytes(65536)]),
    "far too large": (1009, [b"\x01" + bytes(10_000_000)]),
    "flood of pings": (1008, [b"\x06"] * 3000),
    "flood of audio": (1008, [b"\x01" + bytes(65532)] * 60),
}


def test_a_broken_rule_closes_that_connection_only(target: Running, unharmed: np.ndarray) -> None:
    async def attack(name: str, code: int, messages: list[bytes | str]) -> None:
        async with call(target.url) as caller:
            await caller.handshake()
            with suppress(ConnectionError):  # the server may have closed already
                for message in messages:
                    await (caller.ws.send_str(message) if isinstance(message, str) else caller.ws.send_bytes(message))
            closed = await caller.closed()
            assert closed in (code, 1006), name  # 1006 if the server closed while the client was still sending

    async def attacks() -> None:
        await asyncio.gather(*(attack(name, *broken) for name, broken in BROKEN_RULES.items()))

    attacked(target, unharmed, attacks)


@pytest.mark.parametrize("opcode", [9, 10, 0], ids=["pings", "pongs", "fragments"])
def test_a_flood_of_control_frames_and_fragments_is_cut_off(opcode: int, target: Running, unharmed: np.ndarray) -> None:
    """WebSocket libraries make no message of these frames, so the server must count them itself."""
    flood = frame(b"", opcode, fin=opcode != 0) * 20_000

    async def attack() -> None:
        async with dial(target.port, then=frame(b"\1", fin=False)) as (reader, writer):
            taking = asyncio.create_task(reader.read(-1))
            for _ in range(1000):
                writer.write(flood)
                with suppress(ConnectionError):
                    await writer.drain()
                if writer.is_closing():
                    break
            else:
                raise AssertionError("20 million frames were taken")
            with suppress(ConnectionError):
                await taking

    attacked(target, unharmed, attack)


def test_samples_above_full_scale_are_accepted(target: Running, unharmed: np.ndarray) -> None:
    async def attack() -> None:
        async with call(target.url) as caller:
            await caller.handshake()
            heard = await caller.talk(np.full((5, FRAME), 15.0, np.float32))
            assert np.isfinite(heard).all()

    attacked(target, unharmed, attack)


def test_audio_faster_than_real_time_is_dropped(target: Running, unharmed: np.ndarray) -> None:
    async def attack() -> None:
        async with call(target.url) as caller:
            await caller.handshake()
            for _ in range(12):  # ten times as fast
                await caller.say(*speech(10))
                await asyncio.sleep(FRAME_S)
            await caller.until(lambda: caller.metadata("dropped") and caller.metadata("dropped")[-1]["frames"] > 80)
            assert len(caller.all("audio")) < 30

    attacked(target, unharmed, attack)


def test_damaged_ogg_and_opus_do_no_harm(target: Running, unharmed: np.ndarray) -> None:
    """Garbage in every message, then a good stream, which is answered."""
    sender = OpusSender()
    pages = [page for pcm in speech(12) for page in sender.frame(pcm)]

    @settings(**SLOW)
    @given(st.binary(max_size=2000), st.integers(0, len(pages) - 1), st.integers(0, 200), st.integers(0, 255))
    def fuzz(garbage: bytes, page: int, at: int, value: int) -> None:
        damaged = bytearray(pages[page])
        damaged[at % len(damaged)] = value
        messages.extend([b"\1" + garbage, b"\1" + bytes(damaged), b"\1" + pages[page][: at or 1]])

    messages: list[bytes] = []
    fuzz()

    async def attack() -> None:
        async with call(target.url, audio="opus") as caller:
            await caller.handshake()
            for message in messages:
                await caller.ws.send_bytes(message)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.6)
            before = len(caller.all("audio"))
            for page in pages:
                await caller.ws.send_bytes(b"\1" + page)
                await asyncio.sleep(0.08)
            await caller.until(lambda: len(caller.all("audio")) >= before + 8)

    attacked(target, unharmed, attack)
    assert target.metric("pplex_bad_audio_total") > 10


def test_a_decompression_bomb_is_dropped(target: Running, unharmed: np.ndarray) -> None:
    """Packets of two bytes that say they last 120 ms: 40 minutes in 64 KiB, five times."""
    writer = PageWriter(1)
    headers = writer.page([OpusHead(312, 24_000).packet()]) + writer.page([tags_packet()])
    packets = [bytes([0b11111_0_11, 6])] * 255  # CELT, 20 ms; six frames of no bytes

    async def attack() -> None:
        async with call(target.url, audio="opus") as caller:
            await caller.handshake()
            await caller.ws.send_bytes(b"\1" + headers)
            for _ in range(5):
                await caller.ws.send_bytes(b"\1" + b"".join(writer.page(packets) for _ in range(80)))
            await caller.until(lambda: caller.metadata("dropped"))
            assert caller.metadata("dropped")[-1]["frames"] > 1000

    attacked(target, unharmed, attack)


def test_invalid_websocket_frames_do_no_harm(target: Running, unharmed: np.ndarray) -> None:
    """WebSocket frames that no library sends: odd fragments, reserved bits, no mask, too long control frames."""
    attacks = [
        frame(b"\1abcd", fin=False) * 3,
        frame(b"\1", fin=False) + frame(b"abc", opcode=0),
        frame(bytes(200), opcode=9),
        frame(b"\1abcd", opcode=3),
        frame(b"\1abcd", masked=False),
        frame(b"\1", fin=False) + frame(bytes(60_000), opcode=0, fin=False) * 4,
        frame(b"x" * 100)[:50],
        b"\x82\xff" + b"\xff" * 8,
        frame(b"\x03", opcode=8),
        os.urandom(4000),
    ]

    async def attack() -> None:
        for data in attacks:
            async with dial(target.port, then=data):
                await asyncio.sleep(0.05)

    attacked(target, unharmed, attack)


def test_a_client_that_stops_reading_is_dropped(target: Running, unharmed: np.ndarray) -> None:
    """The client talks but reads nothing: its outbox is bounded."""
    before = target.metric('pplex_partings_total{cause="slow"}') + target.metric('pplex_partings_total{cause="lost"}')

    async def attack() -> None:
        async with dial(target.port, receive_buffer=2048) as (_, writer):
            for pcm in speech(120):
                writer.write(frame(b"\1" + pcm.astype("<f4").tobytes()))
                await asyncio.sleep(0.06)
                if writer.is_closing():
                    break

    attacked(target, unharmed, attack)
    after = target.metric('pplex_partings_total{cause="slow"}') + target.metric('pplex_partings_total{cause="lost"}')
    assert after > before


def test_a_client_that_answers_no_ping_is_dropped(target: Running, unharmed: np.ndarray) -> None:
    """Half-open: the client neither closes nor answers pings."""
    before = target.metric('pplex_partings_total{cause="lost"}')

    async def attack() -> None:
        async with dial(target.port) as (reader, _):
            while True:
                opcode, _ = await listen(reader)
                if opcode == 9:
                    break
            await asyncio.to_thread(
                target.wait_for, lambda: target.metric('pplex_partings_total{cause="lost"}') > before
            )

    attacked(target, unharmed, attack)
