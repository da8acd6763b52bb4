"""TLS for the server: from a folder's certificate, or one made for this run."""

import datetime
import ipaddress
import socket
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from pplex.runtime.errors import ConfigError

CERTIFICATE, KEY = "cert.pem", "key.pem"
VALID_DAYS = 30


def folder_context(folder: Path) -> ssl.SSLContext:
    """A context from `folder`'s cert.pem and key.pem. Raises ConfigError where they cannot be used."""
    missing = [name for name in (CERTIFICATE, KEY) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} has no {' and no '.join(missing)}. Put the certificate chain and its key there, or use --self-signed."
        )
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
    """A context with a new certificate for `host` and this machine's names, which clients will not trust by themselves."""
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
    with tempfile.TemporaryDirectory() as name_of_folder:  # ssl reads files only; this one is the user's alone
        folder = Path(name_of_folder)
        (folder / CERTIFICATE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / KEY).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return folder_context(folder)


def _names(host: str) -> list[str]:
    """What this machine is called: the names of the loop, its own, and the addresses it has."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), host]
    # Looking up its own name could ask the network. To connect a datagram socket sends nothing: it chooses the address that
    # others see. These two belong to nobody (RFC 5737, RFC 3849).
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:  # a machine may have no network
            probe.connect((elsewhere, 9))
            names.append(probe.getsockname()[0])
    return list(dict.fromkeys(name for name in names if name not in ("", "0.0.0.0", "::")))


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _no_password() -> str:
    """Instead of a question on the terminal of a server."""
    raise ValueError("the key has a password")
