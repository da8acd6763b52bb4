"""The HTTP side that OpenAI's protocols share: the list of models, settings in the query, and refusals as JSON.

Called by `server.app` and the routes of these protocols.
"""

from typing import NoReturn

from aiohttp import web

from pplex.runtime.bundle import Bundle
from pplex.runtime.sampling import Sampling
from pplex.server.access import Access
from pplex.server.chat_request import SAMPLING, SEEDS, parse_query
from pplex.server.request import RequestError

PREFIXES = ("/v1", "/openai/v1")  # of addresses: OpenAI's, and Azure's
CREATED = 1_767_225_600  # 2026: a list of models must have a date
CODES = {  # OpenAI's code of an error, by HTTP status
    400: "invalid_value",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    426: "upgrade_required",
    503: "server_busy",
}


class WebRtcError(RequestError):
    """A session over WebRTC, which this server does not have. `path`: of the WebSocket to use instead."""

    def __init__(self, path: str):
        super().__init__(400, f"This server has no WebRTC. Open a WebSocket: ws://HOST{path[:200]}")


class OpenAiRoutes:
    """The addresses that do not belong to one protocol. A server has them if it speaks one of OpenAI's protocols."""

    def __init__(self, bundle: Bundle, access: Access):
        self._models, self._access = model_list(bundle), access

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes, after those of the protocols."""
        for prefix in PREFIXES:
            router.add_get(f"{prefix}/models", self._list_models)
            router.add_route("*", f"{prefix}/{{path:.*}}", self._refuse)

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        self._access.check_token(request)
        return web.json_response(self._models)

    async def _refuse(self, request: web.Request) -> NoReturn:
        """Refuse any other address of OpenAI's API. Raises RequestError."""
        raise RequestError(404, f"This server has no {request.method} {ascii(request.path[:200])[1:-1]}.")


def chosen_sampling(request: web.Request, bundle: Bundle) -> tuple[int, Sampling]:
    """The seed and the sampling in the query, with the names of /api/chat. Other parameters are ignored.

    Raises RequestError for a wrong value.
    """
    names = (*SAMPLING, *SEEDS)
    chosen = parse_query([(name, value) for name, value in request.query.items() if name in names], bundle.voices)
    return chosen.seed, chosen.sampling


def model_list(bundle: Bundle) -> dict[str, object]:
    """The models as OpenAI's API lists them: the served one. Any other name is accepted, too."""
    name = "personaplex" if bundle.config.takes_prompt else "moshi"
    return {"object": "list", "data": [{"id": name, "object": "model", "created": CREATED, "owned_by": "pplex-export"}]}


def is_below_prefix(path: str) -> bool:
    """Whether an address belongs to OpenAI's API."""
    return path.startswith(tuple(f"{prefix}/" for prefix in PREFIXES))


def openai_error(error: RequestError) -> web.Response:
    """A refusal in the form of OpenAI's API."""
    code = "unsupported_transport" if isinstance(error, WebRtcError) else CODES.get(error.status, "invalid_request")
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    content = {"message": " ".join(str(error).split("\n")), "type": kind, "param": None, "code": code}
    return web.json_response({"error": content}, status=error.status)
