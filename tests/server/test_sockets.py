"""Addresses where a server listens, on machines with IPv4, IPv6 or both."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serving import MAIN, Serve

from pplex.runtime.errors import ConfigError
from pplex.server.options import ServeOptions
from pplex.server.sockets import listen
from pplex.server.tls import self_signed_context

NO_TEMPORARY_FOLDER = "import tempfile; tempfile._candidate_tempdir_list = list\n"


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def _fetch(url: str) -> int:
    context = ssl._create_unverified_context()
    with urllib.request.urlopen(url, timeout=20, context=context) as response:
        return int(response.status)


async def _listened(options: ServeOptions) -> list[tuple[Any, ...]]:
    server, _ = await listen(asyncio.Protocol, options, 1.0)
    addresses = [listener.getsockname() for listener in server.sockets]
    server.close()
    return addresses


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_include_ipv4_and_ipv6(serve: Serve) -> None:
    with serve("--host", "::") as server:
        port = server.url.rpartition(":")[2]
        assert server.url == f"http://localhost:{port}"
        assert {_fetch(f"http://{host}:{port}/health") for host in ("127.0.0.1", "[::1]", "localhost")} == {200}


def test_a_host_name_may_have_addresses_of_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, localhost has an IPv6 address even if IPv6 is off."""
    elsewhere = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
    found = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *of, **more: [elsewhere, *found("127.0.0.1", *of[1:], **more)])
    ((address, port),) = asyncio.run(_listened(ServeOptions(host="here.example", port=0)))
    assert address == "127.0.0.1" and port > 0


@pytest.mark.parametrize(
    "host, port, words",
    [
        ("192.0.2.1", 0, "This machine has no such address. Choose another --host"),
        ("2001:db8::1", 0, r"Cannot listen on \[2001:db8::1\]:0"),
        ("no.such.host.invalid", 0, "Choose another with --host and --port"),
    ],
)
def test_an_unusable_address_is_reported(host: str, port: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asyncio.run(_listened(ServeOptions(host=host, port=port)))


def test_a_taken_port_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="Another program listens"):
        asyncio.run(_listened(ServeOptions(port=other.getsockname()[1])))


def test_a_certificate_is_made_without_a_temporary_folder(serve: Serve) -> None:
    """For example, in a container with a read-only file system."""
    with serve("--self-signed", prelude=NO_TEMPORARY_FOLDER) as server:
        assert server.url.startswith("https://") and _fetch(f"{server.url}/health") == 200


def test_a_missing_temporary_folder_is_reported(tmp_path: Path) -> None:
    code = "import tempfile, pplex.engines.plan_report as p; p.report_plans = lambda *_: tempfile.mkdtemp()\n"
    command = [sys.executable, "-c", NO_TEMPORARY_FOLDER + code + MAIN, "plan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "TMPDIR=FOLDER" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["münchen.example", "xn--mnchen-3ya.example", "fe80::1%eth0", "my_host.", "::"])
def test_a_certificate_can_be_made_for_any_host(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "the-machine-of-zoë..")  # nothing stops an administrator
    assert isinstance(self_signed_context(host), ssl.SSLContext)


def test_the_load_tool_works_with_standard_error_closed(serve: Serve, tmp_path: Path) -> None:
    with serve("--slots", "1") as server:
        arguments = ["load", server.url, "--sessions", "1", "--minutes", "0.01", "--json"]
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, env={**os.environ})
    assert done.stdout.startswith("{") and '"ready": 1' in done.stdout
