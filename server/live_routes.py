"""The routes of GPT-Live, `/v1/live/sessions`. Called by `server.app`."""

from typing import NoReturn

from aiohttp import web

from pplex.server.live_protocol import LiveProtocol, LiveTerms
from pplex.server.openai_http import PREFIXES, WebRtcError, chosen_sampling
from pplex.server.routes import RouteContext, Routes

SESSIONS = "/live/sessions"


class LiveRoutes(Routes):
    """See `Routes`. The client sends the settings over the open socket."""

    is_openai = True

    def __init__(self, context: RouteContext):
        self._access, self._calls = context.access, context.calls
        self._bundle, self._limits = context.bundle, context.options.limits

    def add_to(self, router: web.UrlDispatcher) -> None:
        for prefix in PREFIXES:
            router.add_get(f"{prefix}{SESSIONS}", self._live)
            router.add_post(f"{prefix}{SESSIONS}", self._refuse_web_rtc)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        self._access.check_origin(request)
        self._access.check_token(request)
        return await self._calls.converse_after_start(request, LiveProtocol(self._terms(request)))

    async def _refuse_web_rtc(self, request: web.Request) -> NoReturn:
        raise WebRtcError(request.path)

    def _terms(self, request: web.Request) -> LiveTerms:
        """What this client gets. Raises RequestError for a wrong value in the query."""
        seed, sampling = chosen_sampling(request, self._bundle)
        return LiveTerms(
            voices=tuple(self._bundle.voices),
            takes_prompt=self._bundle.config.takes_prompt,
            controls=self._access.may_control(request),
            duration_s=self._limits.duration_s,
            seed=seed,
            sampling=sampling,
        )
