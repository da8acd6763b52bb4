"""Opens the server's sockets for a host and a port, with advice if it cannot listen. Called by `server.app`."""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from pplex.runtime.errors import ConfigError
from pplex.server.options import ServeOptions

BACKLOG = 512  # connections that the system keeps until the server accepts them
ALL_ADDRESSES = "::"
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # this machine does not have the address, or its address family


async def listen(
    protocol: Callable[[], asyncio.Protocol], options: ServeOptions, handshake_s: float
) -> tuple[asyncio.Server, str]:
    """A server that makes a `protocol` for each connection, and its URL. Raises ConfigError if it cannot listen."""
    host, port = options.host, options.port
    try:
        server = await asyncio.get_running_loop().create_server(
            protocol,
            **await _where(host, port),
            ssl=options.tls,
            ssl_handshake_timeout=handshake_s if options.tls else None,
            backlog=BACKLOG,
        )
        return server, _url(server.sockets[0], bool(options.tls))
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"Cannot listen on {f'[{host}]' if ':' in host else host}:{port} ({error}). {_advice(error, host)}"
        ) from error


async def _where(host: str, port: int) -> dict[str, Any]:
    """The arguments of the event loop's `create_server` for a host.

    By default the event loop takes "::" for IPv6 only. It also refuses a name if one of its addresses is not this
    machine's, such as localhost if IPv6 is off.
    """
    if host == ALL_ADDRESSES:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6
        return {"sock": socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)}
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for family, *_, address in found if _is_here(family, address)))
    return {"host": addresses if len(found) > 1 and addresses else host, "port": port}


def _is_here(family: int, address: tuple[Any, ...]) -> bool:
    """Whether this machine has the address."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError as error:
        return error.errno not in _ABSENT
    return True


def _url(listener: socket.socket, tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def _advice(error: Exception, host: str) -> str:
    """Advice if the server cannot listen."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "Another program listens there. End it, or choose another --port; 0 takes any free port."
    if number == errno.EACCES:
        return "Ports below 1024 are for the administrator. Choose another --port."
    if number in _ABSENT:
        everywhere = "0.0.0.0" if ":" in host else "0.0.0.0 or ::"
        return f"This machine has no such address. Choose another --host; {everywhere} takes all its addresses."
    return "Choose another with --host and --port."
