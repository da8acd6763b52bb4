"""Refused requests: answers them in our own words, counts them, and logs a limited number.

Called by `server.app`, `server.answers` and `server.calls`.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from pplex.server.limits import Bucket
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics

LOGGED_AT_ONCE, LOGGED_PER_S = 20, 1.0  # limits, because anyone can cause any number of refusals
MAX_LINE_BYTES = 65536  # of a request's address, and of a header: a persona of 7,000 characters in any script
KEEP_ALIVE_S = 10
HEADERS = {  # of every answer
    "Cache-Control": "no-cache",  # all modules of the page must have the same version
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address could hold a token
}


class Refusals:
    """Counts refusals by status, and logs them within the limits."""

    def __init__(self, metrics: Metrics, now_s: float):
        self._metrics = metrics
        self._budget = Bucket(LOGGED_AT_ONCE, LOGGED_PER_S, now_s)
        self._unlogged = 0

    def note(self, status: int, reason: str, now_s: float, **facts: object) -> None:
        self._metrics.refused.labels(str(status)).inc()
        if not self._budget.take(1, now_s):
            self._unlogged += 1
            return
        LOGGER.info("request refused", extra={"status": status, "reason": reason, **facts, "unlogged": self._unlogged})
        self._unlogged = 0


class Handler(web.RequestHandler):
    """aiohttp's handler of one connection. It refuses invalid HTTP and long requests in our own words.

    `refused` is called with the status and the reason.
    """

    __slots__ = ("_refused",)

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop, refused: Callable[[int, str], None]):
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # turns it off
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )
        self._refused = refused

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        status, reason = _reason(exc)
        self._refused(status, reason)
        response = web.Response(status=status, text=f"{reason}\n", headers=HEADERS)
        response.force_close()
        return response


def _reason(error: HttpProcessingError) -> tuple[int, str]:
    """Status and reason for a request that aiohttp cannot parse."""
    if isinstance(error, LineTooLong):
        return 414, (
            f"The address of this request, or one of its headers, is longer than {MAX_LINE_BYTES:,} bytes. "
            "Shorten the persona (text_prompt): a letter takes one byte in an address, and up to twelve in other scripts."
        )
    if "Host" in error.message:
        return (
            400,
            "This request has no Host header, or more than one. If it came through a proxy, the proxy must send one.",
        )
    return 400, "This is not a valid HTTP request."
