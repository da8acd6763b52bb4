"""A replica: one server of a bundle, as a deployment of Ray Serve. `scale.application` binds it to its options."""

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any, TextIO

from ray import serve
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.util import get_node_ip_address

from pplex.runtime.backend import open_to_run
from pplex.scale.bridge import Bridge
from pplex.scale.keys import Keys
from pplex.scale.metrics import merge
from pplex.scale.options import HOST, LOGS, ReplicaOptions
from pplex.scale.sockets import use_passages
from pplex.server.app import SWITCH_S, Server
from pplex.server.logs import start_logging

NAME = "Replica"  # of the deployment
METRICS_S = 5.0
SECRET = b"pplex-export: secret of resume keys"


@serve.deployment(name=NAME)
@serve.ingress()
class Replica:
    """Starts a server, and serves it through a `Bridge`."""

    def __init__(self, options: dict[str, Any]):
        self.name = serve.get_replica_context().replica_id.unique_id
        self.own = ""
        self._options = ReplicaOptions(**options)
        self._keys = Keys(_shared_secret())
        self._server: Server | None = None
        self._draining: asyncio.Task[None] | None = None
        start_logging(_log_file(os.environ.get(LOGS), self.name), replica=self.name)
        use_passages()

    def __serve_build_asgi_app__(self) -> Bridge:
        return Bridge(self)

    # For the bridge.

    async def start(self) -> None:
        """Listen on this node, and load the bundle. Raises PplexError."""
        sys.setswitchinterval(SWITCH_S)
        bundle = await asyncio.to_thread(open_to_run, Path(self._options.bundle), self._options.device)
        options = self._options.of_server(os.environ.get(HOST) or get_node_ip_address())
        self._server = Server(bundle, options, lambda: self._keys.make(self.own))
        self.own = (await self._server.start()).partition("://")[2]
        await self._server.wait_until_ready()

    async def end(self) -> None:
        """Let conversations finish, also those of lost clients that may return; then stop."""
        if self._server is not None:
            await self._server.drain()
            await self._server.stop()

    def make_protocol(self) -> asyncio.Protocol:
        assert self._server is not None
        return self._server.make_protocol()

    def find(self, key: str) -> str | None:
        return self._keys.address(key)

    async def metrics(self) -> bytes:
        asked = serve.get_deployment_handle(NAME).broadcast("page")
        answers = await asked.results_async(
            timeout_s=METRICS_S, return_exceptions=True
        )  # a replica may just have ended
        return merge(dict(answer for answer in answers if isinstance(answer, tuple)))

    # For Serve, and for other replicas.

    def describe(self) -> dict[str, Any]:
        """This replica's options."""
        return self._options.to_dict()

    def page(self) -> tuple[str, str]:
        """This replica's name and metrics."""
        assert self._server is not None
        return self.name, self._server.metrics_page()

    async def drain(self, seconds: float) -> None:
        """Refuse newcomers, and let conversations finish for at most `seconds`. Does not wait for them."""
        if self._server is not None:
            self._draining = asyncio.create_task(self._server.drain(seconds))

    def is_drained(self) -> bool:
        """Whether all conversations have ended after `drain`."""
        return self._draining is None or self._draining.done()

    def check_health(self) -> None:
        """Raises the engine's error: Serve then starts another replica."""
        if self._server is not None:
            self._server.check()


def _log_file(folder: str | None, name: str) -> TextIO | None:
    """The replica's log in `folder`; None without a folder."""
    return (Path(folder) / f"{name}.jsonl").open("a", buffering=1) if folder else None


def _shared_secret() -> bytes:
    """A secret that all replicas of the cluster share, and that lasts as long as the cluster: updates keep it."""
    _internal_kv_put(SECRET, secrets.token_bytes(32), overwrite=False)
    secret: bytes = _internal_kv_get(SECRET)
    return secret
