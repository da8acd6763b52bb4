"""The server starts, shuts down on signals, and ends when its engine fails."""

import asyncio
import signal
import socket
import time
from pathlib import Path

import pytest
from callers import call, run, speech
from serving import Running, Serve


def test_server_answers_health_before_it_is_ready(serve: Serve) -> None:
    with serve("--slots", "1", ready=False) as server:
        assert server.get("/health") == (200, "ok\n")
        server.wait_for(lambda: server.get("/ready")[0] == 200, 60)
        server.wait_for(lambda: server.get("/api/chat")[0] == 426)


def test_a_signal_lets_conversations_finish_until_the_deadline(serve: Serve) -> None:
    async def visit(server: Running) -> None:
        async with call(server.url) as caller:
            await caller.handshake()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, lambda: server.get("/ready")[0] == 503)
            assert server.get("/health")[0] == 200
            status, reason = server.get("/api/chat")
            assert (status, reason) == (503, "The server is shutting down. Try again later.\n")
            assert len(await caller.talk(speech(5))) == 5
            assert await caller.closed() == 1001
        assert await asyncio.to_thread(server.process.wait, 10) == 0

    with pytest.raises(AssertionError, match="the server ended with 0"), serve("--drain-seconds", "2") as server:
        run(visit(server))


def test_server_ends_with_the_last_conversation(serve: Serve) -> None:
    async def visit(server: Running) -> float:
        async with call(server.url) as caller:
            await caller.handshake()
            server.process.send_signal(signal.SIGTERM)
            await caller.talk(speech(3))
        began = time.monotonic()
        assert await asyncio.to_thread(server.process.wait, 10) == 0
        return time.monotonic() - began

    with pytest.raises(AssertionError, match="the server ended with 0"), serve("--drain-seconds", "60") as server:
        assert run(visit(server)) < 10


LOADING = """
import time
from pplex.runtime.session import Runtime
Runtime.__init__ = lambda *arguments, **options: time.sleep(300)
"""


@pytest.mark.parametrize("prelude", [LOADING, ""], ids=["in Python", "in ONNX Runtime"])
def test_server_ends_at_once_while_loading(serve: Serve, prelude: str) -> None:
    with pytest.raises(AssertionError, match="the server ended with 0"), serve(ready=False, prelude=prelude) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


def test_a_slow_download_does_not_delay_the_end(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>Their client</h1>")
    (tmp_path / "large").write_bytes(bytes(30_000_000))
    started = serve("--static", str(tmp_path), "--slots", "1")
    with pytest.raises(AssertionError, match="the server ended with 0"), started as server, socket.socket() as plug:
        plug.connect(("127.0.0.1", server.port))
        plug.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plug.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


FAILING = """
from pplex.runtime.errors import GpuError
from pplex.runtime.session import Runtime
whole = Runtime.{method}
calls = []
def failing(*arguments, **options):
    calls.append(1)
    if len(calls) > {calls}:
        raise GpuError("The GPU has fallen off the bus.")
    return whole(*arguments, **options)
Runtime.{method} = failing
"""


def test_an_engine_that_fails_closes_everything_and_ends_the_server(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller, call(url) as waiting:
            await caller.handshake()
            await caller.say(*speech(4))
            assert await caller.closed() == 1011
            assert await waiting.closed() == 1011

    started = serve("--slots", "1", prelude=FAILING.format(method="step", calls=3))
    with pytest.raises(AssertionError, match="the server ended with 1"), started as server:
        run(visit(server.url))
        assert server.process.wait(10) == 1
        assert "Error: The GPU has fallen off the bus.\n" in server.log.read_text()


def test_an_engine_that_cannot_be_loaded_ends_the_server(serve: Serve) -> None:
    started = serve(ready=False, prelude=FAILING.format(method="__init__", calls=0))
    with pytest.raises(AssertionError, match="the server ended with 1"), started as server:
        assert server.process.wait(20) == 1
        assert "Error: The GPU has fallen off the bus.\n" in server.log.read_text()
