"""Checks `X-Twilio-Signature`, which shows that a request comes from an account of Twilio.

Called by `server.twilio_routes`. A signature is the HMAC-SHA1 of the request's address. The key is the account's auth token.
"""

import base64
import hmac
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

HEADER = "X-Twilio-Signature"
PORT = 443  # Twilio connects with TLS only
SCHEMES = ("wss", "https")


def is_signed(signature: str, addresses: Iterable[str], auth_token: str) -> bool:
    """Whether Twilio signed one of these addresses. The time does not depend on the number of correct characters."""
    given = signature.encode(errors="replace")
    spellings = [spelling for address in addresses for spelling in _spellings(address)]
    return any([hmac.compare_digest(given, signature_of(spelling, auth_token)) for spelling in spellings])


def signature_of(address: str, auth_token: str) -> bytes:
    """The signature of a request without form parameters."""
    return base64.b64encode(hmac.digest(auth_token.encode(), address.encode(errors="replace"), "sha1"))


def _spellings(address: str) -> Iterator[str]:
    """The ways in which Twilio may write an address: it is not consistent in the port, and in a slash at the end.

    Nothing for an address that cannot be parsed.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.netloc.removesuffix(f":{parts.port}"), parts.port or PORT
    except ValueError:  # a Host header can be anything
        return
    for scheme in SCHEMES:
        for netloc in (host, f"{host}:{port}"):
            for end in ("", "/"):
                yield f"{scheme}://{netloc}{parts.path}{end}"
