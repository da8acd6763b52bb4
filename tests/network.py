"""A connection to a server that tests can cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving import Running


class Network:
    """A connection to a server that tests can cut."""

    def __init__(self, port: int):
        self._port, self._writers = port, list[asyncio.StreamWriter]()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += writer, back
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except ConnectionError:
            pass
        writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def network(server: Running) -> AsyncIterator[tuple[str, Network]]:
    way = Network(server.port)
    listener = await asyncio.start_server(way.carry, "127.0.0.1", 0)
    yield f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}", way
    listener.close()
    way.cut()
    await asyncio.sleep(0.05)  # until both ends notice
