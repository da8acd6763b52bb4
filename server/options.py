"""How a bundle is served: what the command line settles before the server starts."""

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pplex.runtime.errors import ConfigError
from pplex.server.limits import Limits

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ServeOptions:
    """How a bundle is served.

    tokens: any of them lets a client in, none asks for none. origins: of pages not our own. trusted_proxies: whose
    X-Forwarded-Host and X-Forwarded-Proto are believed.
    """

    host: str = "127.0.0.1"
    port: int = 8998
    slots: int = 8
    tokens: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    static: Path | None = None
    recordings: Path | None = None
    log_prompts: bool = False
    tls: ssl.SSLContext | None = None
    threads: int | None = None
    device: str | None = None
    limits: Limits = field(default_factory=Limits)
    one_batch_size: bool = False  # that of all slots, see Runtime


def check_folders(static: Path | None, recordings: Path | None) -> None:
    """Make the folder of recordings, and raise ConfigError where one of the two cannot be used."""
    if static is not None and not (static / "index.html").is_file():
        raise ConfigError(f"{static} has no index.html. Give the folder of a built web client.")
    if recordings is not None:
        try:
            recordings.mkdir(parents=True, exist_ok=True)
            probe = recordings / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{recordings} cannot be written to ({error}). Give another folder to --record."
            ) from error
