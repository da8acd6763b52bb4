"""The protocols that the load test speaks, and the audio formats of each. Called by `cli.serving` and `server.load`."""

from collections.abc import Sequence

from pplex.runtime.errors import ConfigError
from pplex.server.options import parse_protocols

FORMATS = {  # by protocol; the first is the default
    "chat": ("opus", "s16", "f32"),
    "live": ("pcm-24k", "pcm-16k", "pcmu-8k", "pcma-8k"),
    "realtime": ("pcm-24k", "pcmu-8k", "pcma-8k"),
    "twilio": ("pcmu-8k",),
}
ALL_FORMATS = tuple(dict.fromkeys(name for names in FORMATS.values() for name in names))


def parse_load_protocols(text: str) -> tuple[str, ...]:
    """Names of protocols, divided by commas. Raises ConfigError."""
    return parse_protocols(text, tuple(FORMATS))


def choose_formats(protocols: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """The format of each protocol: the first of `wanted` that it has, or its default.

    Raises ConfigError if none of the protocols has a format of `wanted`.
    """
    for name in wanted:
        if not any(name in FORMATS[protocol] for protocol in protocols):
            known = "; ".join(f"{protocol} has {', '.join(FORMATS[protocol])}" for protocol in protocols)
            raise ConfigError(f"{name} is not a format of {' or '.join(protocols)}: {known}.")
    return {each: next((name for name in wanted if name in FORMATS[each]), FORMATS[each][0]) for each in protocols}
