"""The routes of the Realtime API, `/v1/realtime`. Called by `server.app`."""

from aiohttp import web

from pplex.server.openai_http import PREFIXES, chosen_sampling
from pplex.server.realtime_protocol import RealtimeProtocol, RealtimeTerms
from pplex.server.request import RequestError
from pplex.server.routes import RouteContext, Routes

REALTIME = "/realtime"


class RealtimeRoutes(Routes):
    """See `Routes`. The client sends the settings over the open socket."""

    is_openai = True

    def __init__(self, context: RouteContext):
        self._access, self._reception, self._calls = context.access, context.reception, context.calls
        self._bundle, self._options = context.bundle, context.options

    def add_to(self, router: web.UrlDispatcher) -> None:
        for prefix in PREFIXES:
            router.add_get(f"{prefix}{REALTIME}", self._realtime)

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        self._access.check_origin(request)
        self._access.check_token(request)
        _check_query(request)
        return await self._calls.converse_after_start(request, RealtimeProtocol(self._terms(request)))

    def _terms(self, request: web.Request) -> RealtimeTerms:
        """What this client gets. Raises RequestError for a wrong value in the query."""
        seed, sampling = chosen_sampling(request, self._bundle)
        return RealtimeTerms(
            voices=tuple(self._bundle.voices),
            takes_prompt=self._bundle.config.takes_prompt,
            model=request.query.get("model") or RealtimeTerms.model,
            controls=self._access.may_control(request),
            tells_speech=self._options.realtime_vad,
            duration_s=self._options.limits.duration_s,
            seed=seed,
            sampling=sampling,
            check=self._reception.check_prompt,
        )


def _check_query(request: web.Request) -> None:
    """Refuse what must not be accepted and closed later: LiveKit would come back for ever. Raises RequestError."""
    if request.query.get("intent") == "transcription":
        raise RequestError(400, "This server has no sessions that only transcribe: leave out intent.")
    if "call_id" in request.query:
        raise RequestError(400, "This server has no calls over WebRTC or SIP: leave out call_id.")
