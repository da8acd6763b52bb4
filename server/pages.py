"""Serves our page or the operator's own, and the login form if the server needs a token.

Called by `server.app` for every path outside the protocol.
"""

import asyncio
import html
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pplex.server.access import Access

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
FORM_BYTES = 4096  # of a login
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "X-Frame-Options": "DENY",
}
LOGIN_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
LOGIN = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <title>Access token</title>
    <style>
      body {{ max-width: 24rem; margin: 15vh auto 0; padding: 0 1.25rem; font: 16px/1.5 system-ui, sans-serif }}
      form {{ display: grid; gap: 0.75rem }}
      input, button {{ padding: 0.6rem 0.75rem; font: inherit }}
    </style>
  </head>
  <body>
    <h1>Access token</h1>
    <p role="alert">{message}</p>
    <form method="post" action="login">
      <label for="token">Token</label>
      <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
      <button type="submit">Open the page</button>
    </form>
  </body>
</html>
"""
ASKS = "This server needs a token. Ask the person who runs it."
WRONG = "This token is wrong. Check it, and try again."


class Pages:
    """The files of one folder. `static`: the operator's; None for our own page, which asks for a token itself.

    refused: called for a wrong token, with the status and the reason. patience_s: time for the body of a login.
    """

    def __init__(self, static: Path | None, access: Access, refused: Callable[[int, str], None], patience_s: float):
        self._static, self._access, self._refused, self._patience_s = static, access, refused, patience_s
        self._folder = static or PAGE

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes, after all others."""
        router.add_get("/", self._index)
        router.add_get(f"/{INDEX}", self._index)
        router.add_post("/login", self._login)
        router.add_get("/login", self._back)
        # A package or a folder may be installed as links into a store (uv, Nix, Bazel, a ConfigMap).
        router.add_static("/", self._folder, follow_symlinks=True)

    def headers(self, response: web.StreamResponse) -> dict[str, str]:
        """The headers of our own files. The operator's page may need other rules."""
        return PAGE_HEADERS if self._static is None and isinstance(response, web.FileResponse) else {}

    async def _index(self, request: web.Request) -> web.StreamResponse:
        token = request.query.get("token", "")
        if self._access.is_token(token):
            return self._let_in(request, token)
        if token and self._access.asks_for_token:
            self._refused(401, WRONG)
        if self._static is not None and not self._access.has_token(request):
            return _login_page(WRONG if token else ASKS)
        return web.FileResponse(self._folder / INDEX)

    async def _back(self, request: web.Request) -> web.StreamResponse:
        """GET /login: redirect to the page. A browser asks for it if the user reloads after the form was sent."""
        return web.Response(status=303, headers={"Location": "./"})

    async def _login(self, request: web.Request) -> web.StreamResponse:
        token = await self._typed_token(request)
        if self._access.is_token(token):
            return self._let_in(request, token)
        self._refused(401, WRONG)
        return _login_page(WRONG)

    async def _typed_token(self, request: web.Request) -> str:
        """The token in the form; "" for a body that is too long, too slow or not a form."""
        body = b""
        try:
            async with asyncio.timeout(self._patience_s):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > FORM_BYTES:
                        break
        except TimeoutError:
            request.protocol.force_close()
            return ""
        except (HttpProcessingError, web.RequestPayloadError):  # the body does not have its declared encoding
            return ""
        if len(body) > FORM_BYTES:
            return ""
        return parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()

    def _let_in(self, request: web.Request, token: str) -> web.StreamResponse:
        """Redirect to the same page with a cookie. The new address has no token, because browsers store addresses."""
        query = [(name, value) for name, value in request.query.items() if name != "token"]
        # Relative: behind a proxy's prefix we do not know the address that the browser uses.
        response = web.Response(status=303, headers={"Location": str(URL("./").with_query(query))})
        self._access.set_cookie(request, response, token)
        return response


def _login_page(message: str) -> web.Response:
    text = LOGIN.format(message=html.escape(message))
    return web.Response(status=401, text=text, content_type="text/html", headers=LOGIN_HEADERS)
