"""Event loop: keeps snapshots of conversations in memory, within limits. Called by `server.app` and `server.control`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pplex.runtime.snapshot import Snapshot
from pplex.server.limits import Limits
from pplex.server.metrics import Metrics
from pplex.server.orders import OrderError
from pplex.server.request import ConversationRequest


@dataclass(frozen=True, eq=False)
class KeptSnapshot:
    """A snapshot, and the settings of the conversation that it was taken from."""

    snapshot: Snapshot
    request: ConversationRequest
    expires: asyncio.TimerHandle


class Snapshots:
    """At most `limits.snapshots` snapshots with `limits.snapshot_bytes` bytes. The oldest are dropped, and each in time."""

    def __init__(self, limits: Limits, metrics: Metrics, make_key: Callable[[], str]):
        self._limits, self._metrics, self._make_key = limits, metrics, make_key
        self._kept: dict[str, KeptSnapshot] = {}  # the oldest first

    @property
    def nbytes(self) -> int:
        return sum(kept.snapshot.nbytes for kept in self._kept.values())

    def keep(self, snapshot: Snapshot, request: ConversationRequest) -> str:
        """Keep a snapshot; returns its key. Raises OrderError if it is larger than all snapshots may be."""
        most = self._limits.snapshot_bytes
        if snapshot.nbytes > most:
            raise OrderError(f"The snapshot has {snapshot.nbytes:,} bytes, but this server keeps at most {most:,}.")
        while len(self._kept) >= self._limits.snapshots or self.nbytes + snapshot.nbytes > most:
            self._drop(next(iter(self._kept)))
        key = self._make_key()
        expires = asyncio.get_running_loop().call_later(self._limits.snapshot_s, self._drop, key)
        self._kept[key] = KeptSnapshot(snapshot, request, expires)
        self._count()
        return key

    def get(self, key: str) -> KeptSnapshot | None:
        return self._kept.get(key)

    def clear(self) -> None:
        """Drop everything."""
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._kept.pop(key).expires.cancel()
        self._count()

    def _count(self) -> None:
        self._metrics.snapshots.set(len(self._kept))
        self._metrics.snapshot_bytes.set(self.nbytes)
