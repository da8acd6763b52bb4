"""TLS for the server, with the certificate in a folder or a new one for this run. Called by `server.app` and `doctor`."""

import datetime
import ipaddress
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pplex.runtime.errors import ConfigError
from pplex.runtime.files import check_readable, is_file
from pplex.server.addresses import EVERYWHERE, parse_host

CERTIFICATE, KEY = "cert.pem", "key.pem"
VALID_DAYS = 30
OPEN_FILES = "/proc/self/fd"


def folder_context(folder: Path) -> ssl.SSLContext:
    """A context from `folder`'s cert.pem and key.pem. Raises ConfigError or AccessError if they are unusable."""
    missing = [name for name in (CERTIFICATE, KEY) if not is_file(folder / name)]
    if missing:
        raise ConfigError(
            f"{folder} lacks {' and '.join(missing)}. Put the certificate chain and its key there, or use --self-signed."
        )
    check_readable(folder / CERTIFICATE, folder / KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{CERTIFICATE} and {KEY} of {folder} cannot be used ({error}). "
            "They must be PEM, belong together, and have no password."
        ) from error
    return context


def self_signed_context(host: str) -> ssl.SSLContext:
    """A context with a new certificate for `host` and this machine's names. Clients do not trust it by default.

    Raises ConfigError for an invalid host.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pplex-export")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = x509.SubjectAlternativeName([_general_name(each) for each in _names(host)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with _named(secret + certificate.public_bytes(serialization.Encoding.PEM)) as path:
        context.load_cert_chain(path)
    return context


@contextmanager
def _named(data: bytes) -> Iterator[str]:
    """The name of a temporary file with `data`, because ssl reads only files. It is in memory if possible."""
    in_memory = hasattr(os, "memfd_create") and os.path.isdir(OPEN_FILES)
    opened = os.fdopen(os.memfd_create(CERTIFICATE), "wb") if in_memory else tempfile.NamedTemporaryFile()  # noqa: SIM115
    with opened as file:
        file.write(data)
        file.flush()
        yield f"{OPEN_FILES}/{file.fileno()}" if in_memory else file.name


def _names(host: str) -> list[str]:
    """The names of this machine: localhost, its own name, and its addresses."""
    names = ["localhost", "127.0.0.1", "::1", parse_host(host)]
    with suppress(ConfigError):  # a machine's name may be invalid
        names.append(parse_host(socket.gethostname()))
    # Looking up the machine's own name could send a DNS request. Connecting a UDP socket sends nothing, but the system then
    # chooses the address that others see. The two targets are reserved for documentation (RFC 5737, RFC 3849).
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:  # a machine may have no network
            probe.connect((elsewhere, 9))
            names.append(probe.getsockname()[0])
    return list(dict.fromkeys(name for name in names if name not in EVERYWHERE))


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return x509.DNSName(name.rstrip("."))


def _no_password() -> str:
    """Raises instead of asking for a password on the server's terminal."""
    raise ValueError("the key has a password")
