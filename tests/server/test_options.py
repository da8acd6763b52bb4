"""What the command line settles: options that can never work are refused at the start, others mean what was meant."""

import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from serving import COMMAND, Running, Serve

from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import ConfigError
from pplex.server.options import ServeOptions, check_folders


def test_origins_and_hosts_of_programs_are_brought_into_form() -> None:
    options = ServeOptions(host="[::1]", origins=("HTTPS://Friend.example:443/",), tokens=("secret",))
    assert (options.host, options.origins) == ("::1", ("https://friend.example",))


@pytest.mark.parametrize(
    "wrong", [{"host": ""}, {"tokens": ("",)}, {"tokens": ("a\n",)}, {"origins": ("friend.example",)}]
)
def test_a_program_cannot_open_the_server_by_accident(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError):
        ServeOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--host", "localhost:8998"], "Give --host localhost --port 8998."),
        (["--host", "a..b"], "a..b is not a host"),
        (["--origin", "friend.example"], "--origin https://friend.example"),
        (["--origin", "https://ok.example", "--origin", "https://friend.example/talk"], "has more than an origin has"),
        (["--token", "schlüssel"], "an HTTP header cannot carry"),
    ],
)
def test_what_can_never_work_is_an_error_of_usage(arguments: list[str], words: str, tiny_bundle: Bundle) -> None:
    command = [*COMMAND, str(tiny_bundle.folder), "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and words in done.stderr and not done.stdout


def test_an_origin_with_a_slash_is_let_in(serve: Serve) -> None:
    with serve("--origin", "https://Friend.example:443/") as server:
        assert _status(server, "https://friend.example") == 426  # it is not refused, and is asked to be a WebSocket
        assert _status(server, "https://foe.example") == 403


def _status(server: Running, origin: str) -> int:
    request = urllib.request.Request(f"{server.url}/api/chat", headers={"Origin": origin})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=20)
    answer.value.close()
    return answer.value.code


@pytest.mark.parametrize("place", ["page", "page/deeper", "link"])
def test_what_is_private_is_not_put_where_everyone_reads(place: str, tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "deeper").mkdir(parents=True)
    (page / "index.html").write_text("")
    (tmp_path / "link").symlink_to("page")
    with pytest.raises(ConfigError, match="recordings would be public"):
        check_folders(page, tmp_path / place)
    with pytest.raises(ConfigError, match="the key of the certificate would be public"):
        check_folders(page, None, tmp_path / place)
    check_folders(page, tmp_path, tmp_path)
