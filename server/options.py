"""How a bundle is served: what the command line settles before the server starts."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pplex.runtime.errors import ConfigError
from pplex.runtime.files import check_readable, is_file
from pplex.server.addresses import Network, parse_host, parse_origin, parse_token
from pplex.server.limits import Limits


@dataclass(frozen=True)
class ServeOptions:
    """How a bundle is served.

    tokens: any of them lets a client in, none asks for none. origins: of pages not our own. trusted_proxies: whose
    X-Forwarded-Host and X-Forwarded-Proto are believed.

    Raises ConfigError for a host, a token or an origin that cannot be one.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", parse_host(self.host))
        object.__setattr__(self, "tokens", tuple(map(parse_token, self.tokens)))
        object.__setattr__(self, "origins", tuple(map(parse_origin, self.origins)))


def check_folders(static: Path | None, recordings: Path | None, certificate: Path | None = None) -> None:
    """Make the folder of recordings. Raises ConfigError or AccessError where one cannot be used."""
    if static is not None:
        if not is_file(static / "index.html"):
            raise ConfigError(f"{static} has no index.html. Give the folder of a built web client.")
        check_readable(static / "index.html")
        _check_private(static, recordings, "recordings")
        _check_private(static, certificate, "the key of the certificate")
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


def _check_private(static: Path, folder: Path | None, what: str) -> None:
    if folder is not None and folder.resolve().is_relative_to(static.resolve()):
        raise ConfigError(f"{folder} is in {static}, which is served to everyone: {what} would be public. Move it.")
