"""The connection of a WebSocket behind a real uvicorn, without Ray: what is passed on, and how a request is refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from callers import run

uvicorn = pytest.importorskip("uvicorn", reason="Ray Serve is not installed: pip install 'pplex-export[scale]'")

from pplex.scale.sockets import HELD_BYTES, PASSAGE, Passage, use_passages  # noqa: E402
from pplex.scale.wires import Unreachable  # noqa: E402

REQUEST = (
    b"GET /a%20b?key=%C3%A9 HTTP/1.1\r\nHost: replica\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class Echo(asyncio.Protocol):
    """Sends back every byte."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def serving(app: App, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a uvicorn with our class of WebSockets."""
    monkeypatch.setattr("uvicorn.config.WS_PROTOCOLS", dict(uvicorn.config.WS_PROTOCOLS))
    use_passages()
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical", loop="asyncio"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(task, 10)


async def exchange(port: int, *sent: bytes) -> bytes:
    """All that comes back for a request with more behind it, until the other side closes or is quiet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for data in sent:
        writer.write(data)
        await asyncio.sleep(0.1)
    found = b""
    with suppress(TimeoutError):
        while data := await asyncio.wait_for(reader.read(65536), 0.5):
            found += data
    writer.close()
    return found


@pytest.mark.parametrize("far", [False, True], ids=["own", "another"])
def test_every_byte_of_a_client_is_passed_on_also_early_ones(monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    early = bytes(range(256)) * (HELD_BYTES // 128)  # twice what is held

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert (scope["path"], scope["query_string"]) == ("/a b", b"key=%C3%A9")
        assert (b"host", b"replica") in scope["headers"]
        assert await receive() == {"type": "websocket.connect"}
        passage: Passage = scope["extensions"][PASSAGE]
        await asyncio.sleep(0.3)
        await (passage.pass_on(address) if far else passage.hand_over(Echo))

    address = ""

    async def visit() -> bytes:
        nonlocal address
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Echo, "127.0.0.1", 0) as other, serving(app, monkeypatch) as port:
            address = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
            return await exchange(port, REQUEST, early, b"late")

    head, _, rest = run(visit()).partition(b"\r\n\r\n")
    assert head.startswith(b"GET /a%20b?key=%C3%A9 HTTP/1.1\r\n") and b"sec-websocket-key" in head.lower()
    assert rest == early + b"late"


@pytest.mark.parametrize(
    ("target", "path"),
    [("//[", "//["), ("/%ff?%5B", "/\ufffd"), ("http://replica:80/a%20b?key=1", "/a b"), ("/a?b?c", "/a")],
)
def test_any_address_of_a_request_is_passed_on(monkeypatch: pytest.MonkeyPatch, target: str, path: str) -> None:
    """A request that cannot be read would stay among uvicorn's connections, and its end would wait for it."""
    paths = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await scope["extensions"][PASSAGE].hand_over(Echo)

    async def visit() -> bytes:
        async with serving(app, monkeypatch) as port:
            return await exchange(port, REQUEST.replace(b"/a%20b?key=%C3%A9", target.encode()))

    assert run(visit()).startswith(f"GET {target} HTTP/1.1".encode())
    assert paths == [path]


def test_refusals_are_answers_of_http_that_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bridge, by Serve itself, and of a server that is gone."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if (case := next(cases)) == "failed":
            raise ValueError(case)
        kind = "http.response" if case == "serve" else "websocket.http.response"
        if case == "gone":
            with pytest.raises(Unreachable):
                await scope["extensions"][PASSAGE].pass_on("127.0.0.1:1")
        status = 499 if case == "unnamed" else 503
        await send({"type": f"{kind}.start", "status": status, "headers": [(b"retry-after", b"5")]})
        await send({"type": f"{kind}.body", "body": b"Try again.\n"})

    async def visit() -> list[bytes]:
        async with serving(app, monkeypatch) as port:
            return [await exchange(port, REQUEST) for _ in range(5)]

    cases = iter(("bridge", "serve", "gone", "unnamed", "failed"))
    *refused, unnamed, failed = run(visit())
    assert unnamed.startswith(b"HTTP/1.1 499 ")
    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\n")
        assert b"connection: close" in answer and answer.endswith(b"\r\n\r\nTry again.\n")
    assert failed.startswith(b"HTTP/1.1 500 ")


def test_a_client_that_does_not_read_stops_the_server_that_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a replica would keep for one client what it sends, without a limit."""
    written, address = 0, ""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(4096))
                await writer.drain()
                written += 4096

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await scope["extensions"][PASSAGE].pass_on(address)

    async def visit() -> None:
        nonlocal address
        async with await asyncio.start_server(flood, "127.0.0.1", 0) as other, serving(app, monkeypatch) as port:
            address = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writer.write(REQUEST)
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.5)
            assert 0 < written < 16 << 20  # in the buffers of the kernel
            while written == before:  # reading lets it go on
                await asyncio.wait_for(reader.readexactly(65536), 5)
            writer.transport.abort()  # and the other connection ends, too, or the server would not

    run(visit())
