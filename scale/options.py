"""The options of a replica, and of all replicas together. Called by `cli.scaling` and most modules of `scale`."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pplex.server.addresses import EVERYWHERE
from pplex.server.limits import Limits
from pplex.server.options import BY_DEFAULT, TWILIO_AUTH_TOKEN, ServeOptions

# Of each node, and therefore variables. Ray's dashboard shows options, so a token is not an option either.
TOKENS, CONTROL_TOKENS = "PPLEX_TOKEN", "PPLEX_CONTROL_TOKEN"
HOST = "PPLEX_REPLICA_HOST"  # address for connections from other replicas; without it, the node's
LOGS = "PPLEX_REPLICA_LOGS"  # folder for a log file of each replica; without it, they log to standard error
SPARE_S = 60.0  # between the end of the longest conversation and the end of its replica
SPARE_REQUESTS = 128  # for pages and metrics, beside conversations


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """One replica's options. All values are those of JSON, so that a config file of Ray Serve can hold them."""

    bundle: str
    slots: int = 8
    threads: int = 1
    device: str | None = None
    origins: tuple[str, ...] = ()
    static: str | None = None
    recordings: str | None = None
    log_prompts: bool = False
    one_batch_size: bool = False
    allow_control: bool = False
    memory_window: int | None = None
    protocols: tuple[str, ...] = BY_DEFAULT
    realtime_vad: bool = False
    public_url: str | None = None
    transcriber: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def longest_s(self) -> float:
        """How long a replica may take to finish its conversations."""
        limits = self._limits()
        return limits.duration_s + limits.resume_s + limits.queue_s

    @property
    def most_requests(self) -> int:
        """More than the server admits: a request above Serve's own limit would wait without an answer."""
        return 2 * (self.slots + self._limits().queue) + SPARE_REQUESTS

    def of_server(self, host: str) -> ServeOptions:
        """The options of the server in a replica, which listens on `host`. Raises ConfigError."""
        return ServeOptions(
            host=host,
            port=0,
            slots=self.slots,
            tokens=tuple(os.environ.get(TOKENS, "").split()),
            origins=tuple(self.origins),
            static=Path(self.static) if self.static else None,
            recordings=Path(self.recordings) if self.recordings else None,
            log_prompts=self.log_prompts,
            threads=self.threads,
            device=self.device,
            limits=Limits(**{**self.limits, "drain_s": self.longest_s}),  # type: ignore[arg-type]
            one_batch_size=self.one_batch_size,
            control_tokens=tuple(os.environ.get(CONTROL_TOKENS, "").split()),
            allow_control=self.allow_control,
            memory_window=self.memory_window,
            protocols=tuple(self.protocols),
            realtime_vad=self.realtime_vad,
            twilio_auth_token=os.environ.get(TWILIO_AUTH_TOKEN),
            public_url=self.public_url,
            transcriber=self.transcriber,
        )

    def _limits(self) -> Limits:
        return Limits(**self.limits)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as values of JSON."""
        default = _values(ReplicaOptions(bundle=""))
        return {name: value for name, value in _values(self).items() if value != default[name]}


def _values(options: ReplicaOptions) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}


def secret_variables(
    tokens: Iterable[str], control_tokens: Iterable[str], twilio_auth_token: str | None = None
) -> dict[str, str]:
    """The variables that hold tokens, for the replicas."""
    given = {
        TOKENS: " ".join(tokens),
        CONTROL_TOKENS: " ".join(control_tokens),
        TWILIO_AUTH_TOKEN: twilio_auth_token or "",
    }
    return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """All replicas: their number, between `least` and `most`, and what one of them takes of a machine."""

    replica: ReplicaOptions
    least: int = 1
    most: int = 1
    gpus: int = 0  # of each replica
    host: str = "127.0.0.1"
    port: int = 8998

    @property
    def url(self) -> str:
        host = "localhost" if self.host in EVERYWHERE else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def conversations(self) -> int:
        return self.most * self.replica.slots
