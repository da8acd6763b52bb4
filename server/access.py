"""Decides who may connect: checks a page's origin, a client's token or cookie, and the headers of a trusted proxy.

Called by the server before a conversation, and by its pages.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from pplex.server.addresses import Network
from pplex.server.chat_request import CREDENTIALS
from pplex.server.request import RequestError

# The cookie's name is COOKIE and the first characters of its value. So servers on one host with different tokens do not
# overwrite each other's cookies.
COOKIE = "pplex_"
COOKIE_NAME_DIGITS = 8
KEY_PREFIX = "openai-insecure-api-key."  # of a subprotocol, by which OpenAI's clients in browsers send their key
API_KEY = "api-key"  # the header of Azure's clients
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Access:
    """The rules from the command line: tokens (a client needs one of them), origins of other pages, trusted proxies.

    control_tokens: admit a client, too, and let it control its conversation. everyone_controls: so may every client.
    """

    def __init__(
        self,
        tokens: tuple[str, ...],
        origins: tuple[str, ...],
        trusted_proxies: tuple[Network, ...],
        control_tokens: tuple[str, ...] = (),
        everyone_controls: bool = False,
    ):
        self._origins, self._trusted_proxies = origins, trusted_proxies
        self._needs_token, self._everyone_controls = bool(tokens), everyone_controls
        self._tokens, self._control_tokens = (*tokens, *control_tokens), control_tokens

    @property
    def asks_for_token(self) -> bool:
        return self._needs_token

    # Origin.

    def check_origin(self, request: web.Request) -> None:
        """Allow pages of this server, pages with an allowed origin, and programs, which send no Origin.

        Raises RequestError that names the compared origins.
        """
        origin = request.headers.get("Origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        page, hosts = _parts(origin), self.own_hosts(request)
        if page.netloc and page.netloc.lower() in {_without_default_port(host, page.scheme) for host in hosts}:
            return
        reached = " or ".join(ascii(host)[:100] for host in hosts) or "an address without a Host header"
        raise RequestError(
            403,
            f"The page comes from {ascii(origin)[:100]}, but this server was reached as {reached}. "
            f"If the page belongs to another site, start the server with --origin {ascii(origin)[1:-1][:100]}. "
            "If page and server are one site behind a proxy, let the proxy pass on the Host header. Or let it set "
            "X-Forwarded-Host, and start the server with --trusted-proxy.",
        )

    def is_https(self, request: web.Request) -> bool:
        """Whether the client's connection is encrypted, here or at a trusted proxy."""
        forwarded = request.headers.get("X-Forwarded-Proto", "") if self._is_from_proxy(request) else ""
        return request.secure or forwarded.partition(",")[0].strip().lower() == "https"

    def own_hosts(self, request: web.Request) -> list[str]:
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
        """Raises RequestError if the server needs a token and the request has no token or a wrong one."""
        if not self.has_token(request):
            raise RequestError(
                401,
                "This server needs a token. A program sends it as Authorization: Bearer TOKEN, or as the parameter "
                "token. A browser gets a cookie from the address /?token=TOKEN.",
            )

    def has_token(self, request: web.Request) -> bool:
        """Whether the request has a token or the cookie of a token. True if the server needs no token."""
        return not self._needs_token or _has_one(request, self._tokens)

    def check_control(self, request: web.Request) -> None:
        """Raises RequestError if the client may not control its conversation."""
        if self.may_control(request):
            return
        if self._control_tokens:
            raise RequestError(
                403,
                "Only some tokens may control a conversation. Send one of those: the person who runs the server has it.",
            )
        raise RequestError(
            403,
            "This server lets no client control its conversation. The person who runs it can allow it: --allow control, or "
            "--control-token.",
        )

    def may_control(self, request: web.Request) -> bool:
        """Whether the client may send orders to its conversation, and choose the agent's first words."""
        if self._everyone_controls:
            return self.has_token(request)
        return _has_one(request, self._control_tokens)

    def is_token(self, value: str) -> bool:
        """Whether a typed value is a token."""
        return _matches([value], self._tokens)

    def set_cookie(self, request: web.Request, response: web.StreamResponse, token: str) -> None:
        """Set a cookie for a browser with a valid token. The cookie lasts until the browser is closed.

        It has no path: then it is for the folder of the page as the browser sees it, also behind a proxy's prefix.
        Lax: a link from another site may open the page, but the cookie does not admit other sites' scripts.
        """
        secure = "; Secure" if self.is_https(request) else ""
        value = _cookie_of(token)
        name = f"{COOKIE}{value[:COOKIE_NAME_DIGITS]}"
        response.headers.add("Set-Cookie", f"{name}={value}; HttpOnly; SameSite=Lax{secure}")


def _has_one(request: web.Request, tokens: tuple[str, ...]) -> bool:
    """Whether the request has one of the tokens, or its cookie."""
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    given = [bearer.strip()] if scheme.lower() == "bearer" else []
    given += [value for name in CREDENTIALS for value in request.query.getall(name, [])]
    given += request.headers.getall(API_KEY, [])
    given += [name.removeprefix(KEY_PREFIX) for name in subprotocols(request) if name.startswith(KEY_PREFIX)]
    return _matches(given, tokens) or _matches(_cookies_of(request), tuple(map(_cookie_of, tokens)))


def subprotocols(request: web.Request) -> list[str]:
    """The names that a WebSocket's client offers. A browser sends OpenAI's key as one of them."""
    offered = request.headers.getall("Sec-WebSocket-Protocol", [])
    return [name.strip() for header in offered for name in header.split(",")]


def _parts(origin: str) -> SplitResult:
    try:
        return urlsplit(origin)
    except ValueError:  # http://[
        return urlsplit("")


def _without_default_port(host: str, scheme: str) -> str:
    """The host without the scheme's default port, as browsers write an origin."""
    return host.lower().removesuffix(DEFAULT_PORTS.get(scheme, ":"))


def _cookie_of(token: str) -> str:
    """A hash of the token as the cookie's value. It does not reveal the token, and a restart does not change it."""
    return hmac.new(token.encode(), b"pplex-export: a browser's cookie", hashlib.sha256).hexdigest()


def _cookies_of(request: web.Request) -> list[str]:
    """The values of all our cookies. A browser also sends cookies of other ports and of outer folders."""
    pairs = (
        part.strip().partition("=") for header in request.headers.getall("Cookie", []) for part in header.split(";")
    )
    return [value for name, _, value in pairs if name.startswith(COOKIE)]


def _matches(given: Iterable[str], secrets: Iterable[str]) -> bool:
    """Whether a given value is a secret. The time does not depend on the number of correct characters."""
    pairs = [(one.encode(errors="replace"), secret.encode()) for one in given for secret in secrets]
    return any([hmac.compare_digest(one, secret) for one, secret in pairs])
