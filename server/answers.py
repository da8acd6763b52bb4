"""What every HTTP request and answer passes through: refusals become answers, and answers get our headers.

Called by `server.app`.
"""

import errno

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pplex.server.gate import Gate
from pplex.server.openai_http import is_below_prefix, openai_error
from pplex.server.pages import Pages
from pplex.server.refusals import HEADERS, Refusals
from pplex.server.request import RequestError
from pplex.server.scheduler import now_s


class Answers:
    """speaks_openai: whether the server has one of OpenAI's protocols; then refusals below its prefixes are JSON."""

    def __init__(self, gate: Gate, pages: Pages, refusals: Refusals, speaks_openai: bool):
        self._gate, self._pages, self._refusals, self._speaks_openai = gate, pages, refusals, speaks_openai

    def add_to(self, app: web.Application) -> None:
        """Let the requests and the answers of `app` pass through here."""
        app.middlewares.append(self._middleware())
        app.on_response_prepare.append(self._note_missing)

    def _middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._gate.passed(request.transport)
            try:
                response = await handler(request)
            except RequestError as error:
                response = self._refuse(request, error)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # a static file's
                    raise
                response = web.Response(status=404, text="This file does not exist.\n")
            if not response.prepared:
                if "Upgrade" in request.headers:
                    response.force_close()  # a balancer may have chosen this server for the conversation alone
                response.headers.update({**HEADERS, **self._pages.headers(response), **response.headers})
            return response

        return middleware

    async def _note_missing(self, request: web.Request, response: web.StreamResponse) -> None:
        """Refuse a missing file: only sending it shows that it is missing."""
        if response.status in (403, 404) and isinstance(response, web.FileResponse | web.HTTPException):
            reason = "This file does not exist, or cannot be read."
            self._refusals.note(response.status, reason, now_s(), path=request.path[:200])

    def _refuse(self, request: web.Request, error: RequestError) -> web.Response:
        facts = {name.lower(): request.headers[name][:200] for name in ("Origin", "Host") if name in request.headers}
        self._refusals.note(error.status, str(error), now_s(), **facts)
        response = web.Response(status=error.status, text=" ".join(f"{error}".split("\n")) + "\n")
        if self._speaks_openai and is_below_prefix(request.path):
            response = openai_error(error)
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response
