"""Whatever a client does, the server goes on and a bystander's conversation is what it would have been without."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from callers import FRAME, FRAME_S, call, dial, frame, listen, run, speech, upgrade
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Running, Serve

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime
from pplex.server.ogg import OpusHead, PageWriter, tags_packet
from pplex.server.opus import OpusSender

BYSTANDER = speech(12, seed=3)
SLOW = dict(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)


@pytest.fixture(scope="module")
def unharmed(tiny_bundle: Bundle) -> np.ndarray:
    """What the bystander hears, from a runtime of its own."""
    with Runtime(tiny_bundle, slots=1, threads=1).open("NATM1", "A bystander.", 77) as session:
        return np.stack([session.step(pcm).pcm for pcm in BYSTANDER])


@pytest.fixture(scope="module")
def target(serve: Serve) -> Iterator[Running]:
    """A server for attacks, quick to give up on clients."""
    with serve(limits={"heartbeat_s": 1.0, "header_s": 1.0, "resume_s": 0.3, "idle_s": 20.0}) as running:
        yield running


async def beside_a_bystander(server: Running, unharmed: np.ndarray, attack: Callable[[], Awaitable[None]]) -> None:
    """Let a bystander talk while `attack` runs, and hold what it hears to what it should hear."""
    async with call(server.url, voice_prompt="NATM1", text_prompt="A bystander.", seed="77") as bystander:
        await bystander.handshake()
        running = asyncio.ensure_future(attack())
        heard = await bystander.talk(BYSTANDER)
        await running
        assert np.abs(heard - unharmed).max() < 1e-4
        assert not bystander.metadata("dropped")


def attacked(server: Running, unharmed: np.ndarray, attack: Callable[[], Awaitable[None]], rounds: int = 1) -> None:
    """Attack beside a bystander, `rounds` times; afterwards the server is well, and no slot is lost."""
    for _ in range(rounds):
        run(beside_a_bystander(server, unharmed, attack))
    assert server.get("/health") == (200, "ok\n")
    server.wait_for(lambda: server.state() == {"ready": True, "slots": 4, "used": 0, "queued": 0})
    assert not [event for event in server.events() if event["level"] == "error"]


NAN = np.array([0.0, np.nan, 0.1], "<f4").tobytes()
INFINITE = np.array([np.inf], "<f4").tobytes()
BROKEN_RULES: dict[str, tuple[int, list[bytes | str]]] = {  # the code to close with, and the messages that call for it
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
            with suppress(ConnectionError):  # it may have hung up already
                for message in messages:
                    await (caller.ws.send_str(message) if isinstance(message, str) else caller.ws.send_bytes(message))
            closed = await caller.closed()
            assert closed in (code, 1006), name  # the second where it hung up on a client that was still sending

    async def attacks() -> None:
        await asyncio.gather(*(attack(name, *broken) for name, broken in BROKEN_RULES.items()))

    attacked(target, unharmed, attacks)


@pytest.mark.parametrize("opcode", [9, 10, 0], ids=["pings", "pongs", "fragments"])
def test_a_flood_below_the_protocol_is_cut_off(opcode: int, target: Running, unharmed: np.ndarray) -> None:
    """Frames of which WebSocket libraries make no message: nobody but us would count them."""
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


def test_samples_above_full_scale_are_heard(target: Running, unharmed: np.ndarray) -> None:
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


def test_damaged_ogg_and_opus(target: Running, unharmed: np.ndarray) -> None:
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


def test_the_decompression_bomb(target: Running, unharmed: np.ndarray) -> None:
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


def test_any_frames_below_the_protocol(target: Running, unharmed: np.ndarray) -> None:
    """WebSocket frames that no library would send: fragments, reserved bits, no mask, control frames that are too long."""
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


def test_a_reader_that_stops_is_dropped(target: Running, unharmed: np.ndarray) -> None:
    """It goes on talking, and takes nothing: its outbox is bounded."""
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


def test_a_silent_peer_is_noticed(target: Running, unharmed: np.ndarray) -> None:
    """Half-open: it neither closes nor answers pings."""
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


def test_a_request_a_byte_at_a_time_is_cut_off(target: Running, unharmed: np.ndarray) -> None:
    async def attack(start: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(start)
        for _ in range(40):
            writer.write(b"X")
            await asyncio.sleep(0.1)
            if reader.at_eof() or writer.is_closing():
                break
        else:
            raise AssertionError("it is still open after 4 s")
        writer.transport.abort()

    async def attacks() -> None:
        starts = b"", b"GET /api/chat HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nContent-"
        await asyncio.gather(*map(attack, starts))
        assert await asyncio.to_thread(target.metric, 'pplex_connections_cut_total{reason="slow"}') >= 2

    attacked(target, unharmed, attacks)


@pytest.mark.parametrize(
    "request_bytes, statuses",
    [
        (b"GET /api/chat?text_prompt=" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (400, 414)),
        (b"GET /api/chat?text_prompt=" + b"%20a" * 1500 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
        (b"GET /api/chat?voice_prompt=../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
        (b"GET /api/chat?voice_prompt=%2e%2e%2fetc%2fpasswd%00 HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
        (b"GET /api/chat?text_prompt=%ff%fe%ed%a0%80 HTTP/1.1\r\nHost: x\r\n\r\n", (400, 426)),
        (b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", (403, 404)),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", (403, 404)),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", (403, 404)),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (404,)),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", (400, 431)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(100) + b"\r\n\r\n", (400,)),
        (b"\0" * 10_000 + b"\r\n\r\n", (400,)),
        (b"BREW /api/chat HTTP/1.1\r\nHost: x\r\n\r\n", (400, 405)),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_a_bad_request_is_refused(
    request_bytes: bytes, statuses: tuple[int, ...], target: Running, unharmed: np.ndarray
) -> None:
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as plug:
        try:
            plug.sendall(request_bytes)
            answer = plug.recv(65536)
        except ConnectionError:
            answer = b"HTTP/1.1 400 "  # it hung up in the middle of it
    assert int(answer.split()[1]) in statuses, answer[:300]
    assert b"root:" not in answer and b"Traceback" not in answer
    assert target.get("/health")[0] == 200


CALLER = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from callers import call, speech
async def main():
    async with call(sys.argv[1]) as caller:
        await caller.handshake()
        print("talking", flush=True)
        while True:
            await caller.ws.send_bytes(b"\\1" + bytes(2000))
            await asyncio.sleep(0.02)
asyncio.run(main())
"""


def test_a_client_that_is_killed_in_the_middle_of_a_frame(target: Running, unharmed: np.ndarray) -> None:
    async def attack() -> None:
        tests = str(Path(__file__).parents[1])
        arguments = [sys.executable, "-c", CALLER, target.url, tests]
        client = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
        assert client.stdout is not None
        assert await client.stdout.readline() == b"talking\n"
        await asyncio.sleep(0.3)
        client.send_signal(signal.SIGKILL)
        await client.wait()

    attacked(target, unharmed, attack, rounds=2)


def test_ten_thousand_connections_leave_nothing_behind(target: Running, unharmed: np.ndarray) -> None:
    """Some hang up before they ask, some while they are primed or queued, some after the handshake, politely or not."""
    loops = 16

    async def visit(kind: int) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            try:
                if kind:
                    writer.write(upgrade_request + (polite if kind == 1 else b""))
                    await writer.drain()
                if kind >= 2:
                    await reader.read(64)
            finally:
                writer.transport.abort() if kind != 1 else writer.close()
        except ConnectionError:
            pass  # the gate is full

    upgrade_request, polite = upgrade(target.port), frame(b"\x03\xe8", opcode=8)

    async def visitor(number: int) -> None:
        for i in range(10_000 // loops):
            await visit((i + number) % 4)

    async def all_of_them() -> None:
        await asyncio.gather(*(visitor(number) for number in range(loops)))
        await asyncio.sleep(0.5)  # until the last ones are closed here, too

    descriptors = len(os.listdir(f"/proc/{target.process.pid}/fd"))
    asyncio.run(asyncio.wait_for(all_of_them(), 120))
    target.wait_for(lambda: target.state() == {"ready": True, "slots": 4, "used": 0, "queued": 0}, 20)
    target.wait_for(lambda: len(os.listdir(f"/proc/{target.process.pid}/fd")) <= descriptors + 2)
    attacked(target, unharmed, lambda: asyncio.sleep(0))


def test_there_is_a_limit_to_connections(serve: Serve, unharmed: np.ndarray) -> None:
    async def attack() -> None:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
        await asyncio.sleep(0.2)
        ended = [reader.at_eof() for reader, _ in opened]
        assert 100 < sum(ended) < 200
        for _, writer in opened:
            writer.transport.abort()

    with serve(limits={"spare_connections": 10, "queue": 2}) as server:
        attacked(server, unharmed, attack)
        assert server.metric('pplex_connections_cut_total{reason="full"}') > 100


def test_tls(serve: Serve, unharmed: np.ndarray) -> None:
    """Plain HTTP, garbage and a handshake that never ends on the TLS port; a conversation over TLS meanwhile."""

    async def attack() -> None:
        for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(500), b"\x16\x03\x01"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plug:
                plug.sendall(data)
                await asyncio.sleep(0.2)

    with serve("--self-signed", "--slots", "1", ready=False) as server:
        server.wait_for(lambda: '"ready"' in server.log.read_text(), 60)
        assert server.url.startswith("https://")
        run(beside_a_bystander(server, unharmed, attack))
        certificate = ssl.get_server_certificate(("127.0.0.1", server.port))
        assert certificate.startswith("-----BEGIN CERTIFICATE-----")
        assert not [event for event in server.events() if event["level"] == "error"]
