"""Who may talk: the origin of a page, the token of a client, the cookie of a browser, and what a trusted proxy says.

Called by the server before a conversation, and by its pages.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from pplex.server.addresses import Network
from pplex.server.request import CREDENTIALS, RequestError

COOKIE = "pplex_"  # and the beginning of its value: servers of other tokens on this host have cookies of their own
COOKIE_NAME_DIGITS = 8
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Access:
    """The rules from the command line: tokens (any of them lets a client in), origins of other pages, trusted proxies."""

    def __init__(self, tokens: tuple[str, ...], origins: tuple[str, ...], trusted_proxies: tuple[Network, ...]):
        self._tokens, self._origins, self._trusted_proxies = tokens, origins, trusted_proxies
        self._cookies = tuple(_cookie_of(token) for token in tokens)

    @property
    def asks_for_token(self) -> bool:
        return bool(self._tokens)

    # Origin.

    def check_origin(self, request: web.Request) -> None:
        """A page may talk to its own server, and to one that allows its origin; programs send no Origin.

        Raises RequestError that says what was compared.
        """
        origin = request.headers.get("Origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        page, hosts = _parts(origin), self._own_hosts(request)
        if page.netloc and page.netloc.lower() in {_without_default_port(host, page.scheme) for host in hosts}:
            return
        reached = " or ".join(ascii(host)[:100] for host in hosts) or "an address without a Host header"
        raise RequestError(
            403,
            f"The page comes from {ascii(origin)[:100]}, and this server was reached as {reached}. "
            f"To allow a page of another site, start the server with --origin {ascii(origin)[1:-1][:100]}. "
            "If both are the same site behind a proxy, let the proxy pass on the Host header, or name the proxy with "
            "--trusted-proxy and let it set X-Forwarded-Host.",
        )

    def is_https(self, request: web.Request) -> bool:
        """Whether the client's connection is encrypted, here or at a trusted proxy."""
        forwarded = request.headers.get("X-Forwarded-Proto", "") if self._is_from_proxy(request) else ""
        return request.secure or forwarded.partition(",")[0].strip().lower() == "https"

    def _own_hosts(self, request: web.Request) -> list[str]:
        """The names of this server in a request: its Host, and what trusted proxies forward."""
        names = request.headers.getall("Host", [])
        if self._is_from_proxy(request):
            names += request.headers.getall("X-Forwarded-Host", [])
        return list(dict.fromkeys(host.strip() for name in names for host in name.split(",") if host.strip()))

    def _is_from_proxy(self, request: web.Request) -> bool:
        try:
            address = ipaddress.ip_address(request.remote or "")
        except ValueError:  # a closed connection has no address
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self._trusted_proxies)

    # Token.

    def check_token(self, request: web.Request) -> None:
        """Raises RequestError where a token is asked for and the request has none, or a wrong one."""
        if not self.has_token(request):
            raise RequestError(
                401,
                "This server asks for a token. A program sends it as Authorization: Bearer TOKEN, or as the parameter "
                "token; a browser gets a cookie from the address /?token=TOKEN.",
            )

    def has_token(self, request: web.Request) -> bool:
        """Whether no token is asked for, or the request has one, or the cookie of one."""
        if not self._tokens:
            return True
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given += [value for name in CREDENTIALS for value in request.query.getall(name, [])]
        return _matches(given, self._tokens) or _matches(_cookies_of(request), self._cookies)

    def is_token(self, value: str) -> bool:
        """Whether a value that somebody typed is a token."""
        return _matches([value], self._tokens)

    def set_cookie(self, request: web.Request, response: web.StreamResponse, token: str) -> None:
        """Let a browser in that has shown its token, until it is closed.

        Without a path the cookie is for the folder of the page as the browser sees it, also behind a proxy's prefix.
        Lax: a link from another site may open the page, but other sites' scripts are not let in by the cookie.
        """
        secure = "; Secure" if self.is_https(request) else ""
        value = _cookie_of(token)
        name = f"{COOKIE}{value[:COOKIE_NAME_DIGITS]}"
        response.headers.add("Set-Cookie", f"{name}={value}; HttpOnly; SameSite=Lax{secure}")


def _parts(origin: str) -> SplitResult:
    try:
        return urlsplit(origin)
    except ValueError:  # http://[
        return urlsplit("")


def _without_default_port(host: str, scheme: str) -> str:
    """As an origin names it."""
    return host.lower().removesuffix(DEFAULT_PORTS.get(scheme, ":"))


def _cookie_of(token: str) -> str:
    """A hash of the token for the browser to keep: it does not reveal the token, and stays the same after a restart."""
    return hmac.new(token.encode(), b"pplex-export: a browser's cookie", hashlib.sha256).hexdigest()


def _cookies_of(request: web.Request) -> list[str]:
    """The values of all our cookies: a browser sends those of other ports and of outer folders as well."""
    pairs = (
        part.strip().partition("=") for header in request.headers.getall("Cookie", []) for part in header.split(";")
    )
    return [value for name, _, value in pairs if name.startswith(COOKIE)]


def _matches(given: Iterable[str], secrets: Iterable[str]) -> bool:
    """Whether one of the given is a secret; takes as long for a near miss as for any other."""
    pairs = [(one.encode(errors="replace"), secret.encode()) for one in given for secret in secrets]
    return any([hmac.compare_digest(one, secret) for one, secret in pairs])
