"""Parses hosts, origins, tokens and addresses of the user into the form that sockets and browsers use.

Called by the command line, by `ServeOptions` and by the client.
"""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from pplex.runtime.errors import ConfigError

EVERYWHERE = ("0.0.0.0", "::")  # hosts that mean all addresses of a machine
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ANY_ORIGIN, NO_ORIGIN = "*", "null"  # browsers send "null" for a file or a sandboxed frame
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEMES = ("http", "https", "ws", "wss")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)


def parse_host(text: str) -> str:
    """A host to listen on: an IP address without brackets, or a name in ASCII. Raises ConfigError."""
    host = text.strip()
    if not host:
        raise ConfigError("The host is empty. Give 127.0.0.1 for this machine only, or 0.0.0.0 for all its addresses.")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _is_ip(bare):
        return bare
    name = _ascii_name(host)
    if name is None:
        raise ConfigError(
            f"{text} is not a host. Give a name or an IP address, without scheme, port or path.{_host_advice(host)}"
        )
    return name


def _host_advice(host: str) -> str:
    """A likely correction."""
    try:
        parts = urlsplit(host if "://" in host else f"//{host}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if not (_is_ip(name) or _ascii_name(name)):
        return ""
    return f" Give --host {name}" + ("." if port is None else f" --port {port}.")


def parse_origin(text: str) -> str:
    """An origin as browsers send it: "*", "null", or scheme://host, with the port if it is not the scheme's default.

    Raises ConfigError for a text that no browser would send.
    """
    origin = text.strip()
    if origin in (ANY_ORIGIN, NO_ORIGIN):
        return origin
    parts = _split(origin)
    host = parts and _url_host(parts)
    if not parts or not host or parts.scheme in ("", "ws", "wss") or "@" in parts.netloc:
        raise ConfigError(
            f"{text or 'An empty text'} is not an origin. Browsers send scheme://host, with :port if it is not the default: "
            f"--origin {_likely_origin(origin)}"
        )
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"{text} is more than an origin. Give --origin {parts.scheme}://{host}{port}")
    return f"{parts.scheme}://{host}{port}"


def _likely_origin(text: str) -> str:
    """An example that is similar to the given text."""
    if text.lower().startswith("file:"):
        return f"{NO_ORIGIN}, which is what they send for files."
    bare = text.partition("://")[2] or text
    netloc = re.split(r"[/?#]", bare.rpartition("@")[2], maxsplit=1)[0]
    parts = _split(f"https://{netloc}")
    return f"https://{netloc.lower() if parts and _url_host(parts) else 'example.org'}"


def parse_network(text: str) -> Network:
    """A network of IP addresses, or one address. Raises ConfigError."""
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
        mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
        return ipaddress.ip_network((mapped, max(0, network.prefixlen - 96)), strict=False) if mapped else network
    except ValueError as error:
        raise ConfigError(
            f"{text} is not an IP address or network. Give one as 127.0.0.1, ::1 or 10.0.0.0/8."
        ) from error


def parse_token(text: str) -> str:
    """A token that a header can carry. Raises ConfigError."""
    if not text.strip():
        raise ConfigError("A token is empty, so everyone could connect.")
    if text != text.strip() or not all(" " <= character <= "~" for character in text):
        raise ConfigError(
            "A token has characters that an HTTP header cannot carry. Use ASCII letters, digits and signs, without "
            "white space around them: openssl rand -hex 16"
        )
    return text


def parse_url(text: str) -> str:
    """The address of a server. Raises ConfigError."""
    url = text.strip()
    parts = _split(url)
    host = parts and _url_host(parts)
    if not parts or not host or parts.scheme not in _SCHEMES:
        raise ConfigError(
            f"{text} is not the address of a server. Give it as the server prints it: http://localhost:8998"
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            f"{parts.scheme}://... is more than the address of a server. Give {parts.scheme}://{host}"
            f"{'' if parts.port is None else f':{parts.port}'}{parts.path}, and a token with --token."
        )
    return url


def parse_public_url(text: str) -> str:
    """The address at which clients reach a server behind a proxy, without a slash at the end. Raises ConfigError."""
    try:
        return parse_url(text).rstrip("/").removesuffix("/twilio").rstrip("/")
    except ConfigError as error:
        raise ConfigError(
            f"{text} is not the address of a server. Give it as clients use it: https://voice.example.org"
        ) from error


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError if the port is not a number, or too large
    except ValueError:
        return None
    return parts


def _url_host(parts: SplitResult) -> str | None:
    """The host of a URL as a browser writes it; None if it is not valid."""
    host = parts.hostname or ""
    if ":" in host:
        return f"[{ipaddress.ip_address(host).compressed}]" if _is_ip(host) else None
    return _ascii_name(host)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ascii_name(host: str) -> str | None:
    """A name in the ASCII form of DNS, xn--mnchen-3ya for münchen; None if it is not a valid name."""
    try:
        name = host.encode("idna").decode()
    except UnicodeError:  # an empty part, or one that is too long
        return None
    return name if _NAME.fullmatch(name) else None
