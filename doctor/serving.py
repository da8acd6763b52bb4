"""Checks for serving: a free port, a certificate, audio libraries, and a browser for the tests."""

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import first_line, probe

TESTS = Path(__file__).resolve().parents[1] / "tests"  # in a checkout
SOON_DAYS = 14
_CERTIFICATE = """
import datetime
from pathlib import Path
from cryptography import x509
chain = x509.load_pem_x509_certificates(Path(arguments[0]).read_bytes())
now = datetime.datetime.now(datetime.UTC)
first = chain[0]
try:
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = [str(name.value) for name in names]
except x509.ExtensionNotFound:
    names = []
found = {
    "begins": max(one.not_valid_before_utc for one in chain).isoformat(),
    "ends": min(one.not_valid_after_utc for one in chain).isoformat(),
    "seconds": min((one.not_valid_after_utc - now).total_seconds() for one in chain),
    "begun": all(one.not_valid_before_utc <= now for one in chain),
    "names": names,
}
"""
_TLS = """
from pathlib import Path
from pplex.server.tls import folder_context
folder_context(Path(arguments[0]))
found = True
"""
_SOUNDFILE = """
import soundfile
formats = {"FLAC": soundfile.check_format("FLAC"), "Ogg Opus": soundfile.check_format("OGG", "OPUS")}
found = {"version": soundfile.__libsndfile_version__, "lacks": [name for name, there in formats.items() if not there]}
"""
_PYAV = """
import av
lacks = []
for name, mode in (("libopus", "w"), ("opus", "r")):
    try:
        av.codec.Codec(name, mode)
    except Exception:
        lacks.append(f"{name} to {'encode' if mode == 'w' else 'decode'}")
found = {"version": av.__version__, "lacks": lacks}
"""


def check_audio(question: Question) -> Iterator[Finding]:
    """Check libsndfile behind soundfile, and Opus in PyAV. Another check reports missing packages."""
    stops = tuple(aim for aim in ("run", "serve") if aim in question.aims)
    files = probe(_SOUNDFILE)
    if not files.error:
        cure = "pip install --force-reinstall soundfile: its wheel includes a libsndfile with Opus"
        yield _library("audio", f"libsndfile {files.value['version']}", files.value["lacks"], cure, ())
    opus = probe(_PYAV) if "serve" in stops else None
    if opus is not None and not opus.error:
        cure = "pip install --force-reinstall --only-binary av av: its wheel includes libopus"
        yield _library("audio", f"PyAV {opus.value['version']}", opus.value["lacks"], cure, ("serve",))


def _library(check: str, name: str, lacks: list[str], cure: str, stops: tuple[str, ...]) -> Finding:
    if lacks:
        return Finding(
            check, PROBLEM if stops else WARNING, f"{name} was built without {', '.join(lacks)}.", cure, stops
        )
    return Finding(check, OK, f"{name}, with Opus.")


def check_port(question: Question) -> Iterator[Finding]:
    """Check that a server can listen on the port. The port is bound for a moment."""
    where = f"{question.host or 'all addresses'}, port {question.port}"
    try:
        found = socket.getaddrinfo(
            question.host or None, question.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe_socket:
                probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe_socket.bind(address)
                probe_socket.listen(1)
    except (OSError, UnicodeError) as error:
        yield Finding("port", PROBLEM, f"A server cannot listen on {where}: {error}", _port_advice(error), ("serve",))
        return
    yield Finding("port", OK, f"A server can listen on {where}.")


def _port_advice(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return "Another program uses this port: end it, or choose another --port (0: any free port)."
    if code in (errno.EACCES, errno.EPERM):
        return "Ports below 1024 need privileges: choose a higher --port, and put a proxy in front."
    return "Choose a --host of this machine: 127.0.0.1, 0.0.0.0 for all addresses, or one of its addresses."


def check_certificate(question: Question) -> Iterator[Finding]:
    """Check the folder of `--ssl`: certificate and key must match, and the certificate must be valid today."""
    if question.tls_folder is None:
        if question.host not in ("127.0.0.1", "localhost", "::1"):
            fact = "Without TLS, browsers allow the microphone only for pages from this machine."
            yield Finding(
                "certificate", WARNING, fact, "Serve with --ssl DIR or --self-signed, or behind a proxy with TLS."
            )
        return
    context = probe(_TLS, str(question.tls_folder))
    if context.error:
        fact, _, advice = context.error.removeprefix("ConfigError: ").partition(". ")
        yield Finding("certificate", PROBLEM, f"{fact}.", advice or "Give this user permission to read it.", ("serve",))
        return
    answer = probe(_CERTIFICATE, str(question.tls_folder / "cert.pem"))
    if answer.error:
        fact = f"cert.pem and key.pem match; the dates cannot be read: {first_line(answer.error)}"
        yield Finding(
            "certificate", WARNING, fact, f"openssl x509 -dates -noout -in {question.tls_folder / 'cert.pem'}"
        )
    else:
        yield _dates(answer.value)


def _dates(answer: dict[str, Any]) -> Finding:
    names = f" for {', '.join(answer['names'])}" if answer["names"] else ""
    until = answer["ends"][:10]
    if not answer["begun"]:
        fact = f"The certificate{names} is not valid before {answer['begins'][:10]}."
        return Finding("certificate", PROBLEM, fact, "Set the clock, or get another certificate.", ("serve",), answer)
    if answer["seconds"] < 0:
        fact = f"The certificate{names} has expired on {until}."
        return Finding("certificate", PROBLEM, fact, "Renew it, or use --self-signed for a trial.", ("serve",), answer)
    level = WARNING if answer["seconds"] < SOON_DAYS * 86400 else OK
    advice = "Renew it, and restart the server." if level == WARNING else None
    return Finding(
        "certificate",
        level,
        f"The certificate{names} and its key match; valid until {until}.",
        advice,
        (),
        answer,
    )


def check_browser(question: Question) -> Iterator[Finding]:
    """Check Chromium for the tests of the page: only in a checkout, and only without a named command."""
    if question.aim is not None or not TESTS.is_dir():
        return
    program = shutil.which("chromium")
    if program is None:
        advice = "apt-get install chromium"
        yield Finding("browser", WARNING, "chromium is not installed, so the tests of the page are skipped.", advice)
        return
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("browser", WARNING, f"{program} does not start: {error}", "apt-get install --reinstall chromium")
        return
    driven = probe("import playwright.sync_api; found = True")
    if driven.error:
        fact = f"{first_line(answer)}; playwright, which drives it, cannot be imported: {first_line(driven.error)}"
        yield Finding("browser", WARNING, fact, "pip install 'pplex-export[test]'")
    else:
        yield Finding("browser", OK, f"{first_line(answer)}, and playwright: the tests of the page run.")
