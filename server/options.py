"""The options of a server. The command line sets and checks them before the server starts.

Called by `cli.serving`, `server.app` and `server.sockets`.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pplex.runtime.errors import ConfigError
from pplex.runtime.files import check_readable, is_file
from pplex.server.addresses import Network, parse_host, parse_origin, parse_public_url, parse_token
from pplex.server.limits import Limits

PROTOCOLS = ("chat", "live", "realtime", "twilio")  # at /api/chat, /v1/live/sessions, /v1/realtime and /twilio
BY_DEFAULT = ("chat", "live", "realtime")
TWILIO_AUTH_TOKEN = "PPLEX_TWILIO_AUTH_TOKEN"  # a variable without an option: other users could see an option

WITH_WORDS = ("live", "realtime")  # protocols whose clients get their users' words, with `--transcribe`
DEFAULT_MODEL = "base.en"  # of `--transcribe whisper`
MODEL_FILES = ("config.json", "model.bin", "tokenizer.json")  # in the folder of a model for `--transcribe`


def parse_protocols(text: str, known: Sequence[str] = PROTOCOLS) -> tuple[str, ...]:
    """Names of protocols, divided by commas. Raises ConfigError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"{unknown[0]} is not a protocol" if unknown else "No protocol is named"
        raise ConfigError(f"{wrong}. Choose from {', '.join(known)}, divided by commas.")
    return names


def parse_transcriber(name: str) -> str:
    """The model that `--transcribe` names; a folder with its whole path. Raises ConfigError if the folder is incomplete."""
    if name == "whisper":
        return DEFAULT_MODEL
    folder = Path(name)
    missing = [each for each in MODEL_FILES if not (folder / each).is_file()]
    if folder.is_dir() and missing:
        raise ConfigError(
            f"{name} has no {' and no '.join(missing)}. Give a folder with a Whisper model in CTranslate2's format."
        )
    return str(folder.absolute()) if folder.is_dir() else name


def check_transcriber(protocols: tuple[str, ...], model: str | None) -> None:
    """Check that some client gets the words. Raises ConfigError."""
    if model is not None and not set(protocols) & set(WITH_WORDS):
        raise ConfigError(
            f"--transcribe is of no use without {' or '.join(WITH_WORDS)}: add one of them to --protocols."
        )


def check_twilio(protocols: tuple[str, ...], tokens: tuple[str, ...], auth_token: str | None) -> None:
    """Check that the server can see who calls. Raises ConfigError."""
    if auth_token is not None and not (auth_token.isascii() and auth_token.isalnum()):
        raise ConfigError(
            f"{TWILIO_AUTH_TOKEN} must be the auth token of your Twilio account: letters and digits only."
        )
    if "twilio" in protocols and not (auth_token or tokens):
        raise ConfigError(
            f"The protocol twilio needs a way to see who calls. Set {TWILIO_AUTH_TOKEN} to the auth token of your "
            "Twilio account, or give the server a token of its own: --token."
        )


@dataclass(frozen=True)
class ServeOptions:
    """The options of a server.

    tokens: a client needs one of them; without tokens everyone may connect. origins: other pages that may connect.
    trusted_proxies: their X-Forwarded-Host and X-Forwarded-Proto are trusted. control_tokens: they admit a client, too, and
    let it control its conversation. allow_control: every client may. memory_window: as in Runtime. protocols: of PROTOCOLS.
    twilio_auth_token: of the account whose signatures are checked. public_url: how Twilio reaches the server.
    transcriber: the model of Whisper that writes down what users say, or None.

    Raises ConfigError for an invalid host, token, origin or address, and for twilio without a token of any kind.
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
    one_batch_size: bool = False  # step all slots in every call, see Runtime
    otel: bool = False  # send traces to OpenTelemetry
    control_tokens: tuple[str, ...] = ()
    allow_control: bool = False
    memory_window: int | None = None
    protocols: tuple[str, ...] = BY_DEFAULT
    realtime_vad: bool = False  # tell clients of the Realtime API when their user begins and stops to speak
    twilio_auth_token: str | None = None
    public_url: str | None = None
    transcriber: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", parse_host(self.host))
        object.__setattr__(self, "tokens", tuple(map(parse_token, self.tokens)))
        object.__setattr__(self, "control_tokens", tuple(map(parse_token, self.control_tokens)))
        object.__setattr__(self, "origins", tuple(map(parse_origin, self.origins)))
        if self.public_url is not None:
            object.__setattr__(self, "public_url", parse_public_url(self.public_url))
        check_transcriber(self.protocols, self.transcriber)
        check_twilio(self.protocols, self.tokens, self.twilio_auth_token)

    @property
    def lets_control(self) -> bool:
        """Whether some client may control its conversation."""
        return self.allow_control or bool(self.control_tokens)


def check_folders(static: Path | None, recordings: Path | None, certificate: Path | None = None) -> None:
    """Check the folders, and make the folder of recordings. Raises ConfigError or AccessError if a folder is unusable."""
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
        raise ConfigError(f"{folder} is in {static}, which everyone can read: {what} would be public. Move it.")
