"""The interface between the HTTP server and the routes of a wire protocol (`chat_routes`, `live_routes`).

Called by `server.app`.
"""

from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from pplex.runtime.bundle import Bundle
from pplex.server.access import Access
from pplex.server.calls import Calls
from pplex.server.options import ServeOptions
from pplex.server.reception import Reception


@dataclass(frozen=True)
class RouteContext:
    """Shared by all routes of a server: `access` and `reception` check a request, `calls` hold the conversation."""

    bundle: Bundle
    options: ServeOptions
    access: Access
    reception: Reception
    calls: Calls


class Routes(Protocol):
    """The addresses of one wire protocol."""

    is_openai: bool  # whether the protocol is OpenAI's: refusals are JSON, and the server lists its models

    def __init__(self, context: RouteContext): ...

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
