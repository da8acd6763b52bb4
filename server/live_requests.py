"""The HTTP side of OpenAI's protocols: settings in the address, the list of models, and errors as JSON.

Called by `server.app`.
"""

from typing import NoReturn

from aiohttp import web

from pplex.runtime.bundle import Bundle
from pplex.server.chat_request import SAMPLING, SEEDS, parse_query
from pplex.server.live_protocol import LiveTerms
from pplex.server.request import RequestError

SESSIONS = "/live/sessions"
CREATED = 1_767_225_600  # 2026: a list of models must have a date
CODES = {  # OpenAI's code of an error, by HTTP status
    400: "invalid_value",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    426: "upgrade_required",
    503: "server_busy",
}


class TransportError(RequestError):
    """A session over WebRTC, which this server does not have."""


def live_terms(request: web.Request, bundle: Bundle, controls: bool, duration_s: float) -> LiveTerms:
    """What this client gets. Seed and sampling have the names of /api/chat; other parameters are ignored.

    Raises RequestError for a wrong value.
    """
    names = (*SAMPLING, *SEEDS)
    chosen = parse_query([(name, value) for name, value in request.query.items() if name in names], bundle.voices)
    return LiveTerms(
        voices=tuple(bundle.voices),
        takes_prompt=bundle.config.takes_prompt,
        controls=controls,
        duration_s=duration_s,
        seed=chosen.seed,
        sampling=chosen.sampling,
    )


def model_list(bundle: Bundle) -> dict[str, object]:
    """The models as OpenAI's API lists them: the served one. Any other name is accepted, too."""
    name = "personaplex" if bundle.config.takes_prompt else "moshi"
    return {"object": "list", "data": [{"id": name, "object": "model", "created": CREATED, "owned_by": "pplex-export"}]}


async def refuse_path(request: web.Request) -> NoReturn:
    """Refuse any other address of OpenAI's API. Raises RequestError."""
    if request.method == "POST" and request.path.endswith(SESSIONS):
        raise TransportError(400, f"This server has no WebRTC. Open a WebSocket: ws://HOST{request.path[:200]}")
    raise RequestError(404, f"This server has no {request.method} {ascii(request.path[:200])[1:-1]}.")


def openai_error(error: RequestError) -> web.Response:
    """A refusal in the form of OpenAI's API."""
    code = "unsupported_transport" if isinstance(error, TransportError) else CODES.get(error.status, "invalid_request")
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    content = {"message": " ".join(str(error).split("\n")), "type": kind, "param": None, "code": code}
    return web.json_response({"error": content}, status=error.status)
