"""The queue of a full server: positions, refusals, and how long a client may wait."""

import aiohttp
import pytest
from callers import call, run
from serving import Serve


def test_a_full_server_queues_with_a_position_and_then_refuses(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as talking:
            await talking.handshake()
            async with call(url) as second, call(url) as third:
                await second.until(lambda: second.metadata("queued"))
                await third.until(lambda: third.metadata("queued"))
                assert second.metadata("queued") == [{"type": "queued", "position": 1}]
                assert third.metadata("queued") == [{"type": "queued", "position": 2}]
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    async with call(url):
                        pass
                assert refused.value.status == 503
                assert int(refused.value.headers["Retry-After"]) > 0  # type: ignore[index]
                await third.until(lambda: third.all("ping"), "a ping in the queue")
                await talking.ws.close()
                await second.handshake()
                await third.until(lambda: {"type": "queued", "position": 1} in third.metadata("queued"))
                assert not third.all("handshake")
                await second.ws.close()
                await third.handshake()

    with serve("--slots", "1", "--queue", "2") as server:
        run(visit(server.url))
        server.wait_for(lambda: server.state() == {"ready": True, "slots": 1, "used": 0, "queued": 0})


def test_waiting_in_the_queue_has_a_limit(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as talking:
            await talking.handshake()
            async with call(url) as waiting:
                assert await waiting.closed() == 1013
                assert b"No slot became free" in waiting.all("error")[0]

    with serve("--slots", "1", "--queue-seconds", "0.5") as server:
        run(visit(server.url))
        assert server.metric('pplex_partings_total{cause="queue"}') == 1
