"""Hostile connections: slow, bad and very many requests, killed clients, and garbage on the TLS port."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bystander import attacked, beside_a_bystander
from callers import frame, run, upgrade
from serving import Running, Serve


def test_a_request_sent_byte_by_byte_is_cut_off(target: Running, unharmed: np.ndarray) -> None:
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
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)) + b"\r\n\r\n", (400,)),
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
            answer = b"HTTP/1.1 400 "  # the server closed in the middle of the request
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


def test_a_client_killed_in_the_middle_of_a_frame_does_no_harm(target: Running, unharmed: np.ndarray) -> None:
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
    """Clients leave before the request, while primed or queued, or after the handshake, with or without a close message."""
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


def test_connections_are_limited(serve: Serve, unharmed: np.ndarray) -> None:
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


def test_tls_port_survives_anything_that_is_not_tls(serve: Serve, unharmed: np.ndarray) -> None:
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
