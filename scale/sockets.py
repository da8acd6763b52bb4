"""The WebSockets of a replica behind HAProxy: uvicorn's, with the limits of `serve`. Called by `scale.replica`.

Ray has no options for these. Uvicorn takes a name for its class of WebSockets, and Ray leaves the name at "auto".
"""

import asyncio
import socket
from typing import Any

from uvicorn import config as uvicorn_config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from pplex.server.limits import MAX_MESSAGE, Limits

SEND_BUFFER = 32768  # bytes that the kernel keeps for a client
LARGEST = 2 * MAX_MESSAGE  # the server refuses a message above MAX_MESSAGE in its own words


class ReplicaSocket(WebSocketsSansIOProtocol):
    """A client's WebSocket: pinged as often as by `serve`, not compressed, and not closed when its replica drains."""

    def __init__(self, config: uvicorn_config.Config, *arguments: Any, **options: Any):
        heartbeat_s = Limits().heartbeat_s
        config.ws_ping_interval, config.ws_ping_timeout = heartbeat_s, heartbeat_s / 2
        config.ws_per_message_deflate, config.ws_max_size = False, LARGEST  # Opus cannot be compressed
        super().__init__(config, *arguments, **options)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=SEND_BUFFER // 4)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def shutdown(self) -> None:
        """Uvicorn calls this when it stops to listen. The conversation goes on; Serve waits for its end."""


def use_replica_sockets() -> None:
    """Let uvicorn servers that start later in this process use `ReplicaSocket`."""
    uvicorn_config.WS_PROTOCOLS["auto"] = f"{__name__}:{ReplicaSocket.__name__}"
