"""The `start` message of Twilio Media Streams: from JSON to the settings of a conversation. No I/O.

Called by `server.twilio_protocol`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pplex.server.chat_request import SAMPLING, SEEDS, parse_query
from pplex.server.request import ConversationRequest, RequestError

MAX_SID = 256  # characters
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
PERSONA = re.compile(r"persona(?:_([1-9][0-9]{0,3}))?")  # Twilio's parameters are too short for a long one


class StartError(Exception):
    """A start message with a wrong value. The text says which one; the cause is that of the metric."""

    def __init__(self, reason: str, cause: str = "protocol"):
        super().__init__(reason)
        self.cause = cause


@dataclass(frozen=True)
class TwilioTerms:
    """What the server offers a caller. takes_prompt: whether the model has voices and personas.

    is_token: whether a text is one of the server's tokens; None if the request has already shown who asks.
    """

    voices: Mapping[str, object]
    takes_prompt: bool = True
    is_token: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class MediaStart:
    """Checked settings. stream_sid: Twilio's name of the stream."""

    stream_sid: str
    request: ConversationRequest


def parse_start(event: Mapping[str, Any], terms: TwilioTerms) -> MediaStart:
    """The settings in a `start` message. Raises StartError."""
    start = event.get("start")
    if type(start) is not dict:
        raise StartError("start must be an object.")
    parameters = _parameters(start.get("customParameters"))
    _check_token(parameters.pop("token", ""), terms)
    sid = start.get("streamSid", event.get("streamSid"))
    if type(sid) is not str or not 0 < len(sid) <= MAX_SID:
        raise StartError(f"streamSid must be a text of 1 to {MAX_SID} characters.")
    given = start.get("mediaFormat")
    if type(given) is not dict or any(given.get(name) != value for name, value in FORMAT.items()):
        raise StartError("mediaFormat must be audio/x-mulaw with 8000 Hz and 1 channel.")
    try:
        chosen = parse_query(_query(parameters), terms.voices, terms.takes_prompt)
    except RequestError as error:
        raise StartError(str(error)) from error
    request = ConversationRequest(
        voice=chosen.voice,
        persona=chosen.persona,
        seed=chosen.seed,
        sampling=chosen.sampling,
        ignored=chosen.ignored,
    )
    return MediaStart(sid, request)


def _check_token(token: str, terms: TwilioTerms) -> None:
    """Before anything else is checked: a stranger learns nothing about the bundle."""
    if terms.is_token is not None and not terms.is_token(token):
        wrong = "is not a token of this server" if token else "is missing"
        raise StartError(f"The parameter token {wrong}.", "token")


def _parameters(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if type(given) is not dict:
        raise StartError("customParameters must be an object.")
    for name, value in given.items():
        if type(value) is not str or any("\ud800" <= character <= "\udfff" for character in value):
            raise StartError(f"The parameter {name[:60]!a} must be text.")
    return dict(given)


def _query(parameters: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The parameters with the names of `/api/chat`. Unknown names get a prefix, so that it knows none of them."""
    parts = dict[int, str]()
    for name, value in parameters.items():
        if part := PERSONA.fullmatch(name):
            parts[int(part[1] or 0)] = value.strip()
        elif name == "voice":
            yield "voice_prompt", value
        else:
            yield name if name in (*SAMPLING, *SEEDS) else f"customParameters.{name}", value
    if parts:
        yield "text_prompt", " ".join(parts[number] for number in sorted(parts))
