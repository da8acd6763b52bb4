"""Options of `serve`: impossible ones are refused at the start, others are normalised."""

import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from callers import run
from serving import COMMAND, Running, Serve

from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import ConfigError
from pplex.runtime.session import Runtime
from pplex.server.app import ROUTES, Server
from pplex.server.options import PROTOCOLS, ServeOptions, check_folders


def test_origins_and_hosts_are_normalised() -> None:
    options = ServeOptions(host="[::1]", origins=("HTTPS://Friend.example:443/",), tokens=("secret",))
    assert (options.host, options.origins) == ("::1", ("https://friend.example",))


def test_every_protocol_of_the_option_has_routes() -> None:
    assert tuple(ROUTES) == PROTOCOLS


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": ""},
        {"tokens": ("",)},
        {"tokens": ("a\n",)},
        {"control_tokens": ("",)},
        {"origins": ("friend.example",)},
        {"protocols": ("twilio",)},
        {"protocols": ("chat",), "transcriber": "base.en"},
        {"protocols": ("chat", "twilio"), "control_tokens": ("secret",)},
        {"twilio_auth_token": ""},
    ],
)
def test_empty_options_do_not_open_the_server_by_accident(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError):
        ServeOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--host", "localhost:8998"], "Give --host localhost --port 8998."),
        (["--host", "a..b"], "a..b is not a host"),
        (["--origin", "friend.example"], "--origin https://friend.example"),
        (["--origin", "https://ok.example", "--origin", "https://friend.example/talk"], "is more than an origin"),
        (["--token", "schlüssel"], "an HTTP header cannot carry"),
        (["--control-token", "schlüssel"], "an HTTP header cannot carry"),
        (["--allow", "all"], "'control'"),
        (["--protocols", "chat,sip"], "sip is not a protocol. Choose from chat, live, realtime, twilio"),
        (["--protocols", "twilio"], "Set PPLEX_TWILIO_AUTH_TOKEN"),
        (["--public-url", "voice.example"], "Give it as clients use it: https://voice.example.org"),
        (["--public-url", "https://voice.example/?x"], "Give it as clients use it: https://voice.example.org"),
        (["--protocols", " ,"], "No protocol is named"),
        (["--max-minutes", "inf"], "inf is not a number up to 1,000,000,000"),
        (["--queue-seconds", "nan"], "nan is not a number up to 1,000,000,000"),
        (["--memory-window", "long"], "'long' is neither off nor a number of steps"),
    ],
)
def test_impossible_options_are_usage_errors(arguments: list[str], words: str, tiny_bundle: Bundle) -> None:
    command = [*COMMAND, str(tiny_bundle.folder), "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and words in done.stderr and not done.stdout


@pytest.mark.parametrize("value, words", [("", "is set, but empty"), ("a b", "the auth token of your Twilio account")])
def test_a_wrong_auth_token_is_a_usage_error(value: str, words: str, tiny_bundle: Bundle) -> None:
    environment = {**os.environ, "PPLEX_TWILIO_AUTH_TOKEN": value}
    command = [*COMMAND, str(tiny_bundle.folder), "--port", "0", "--protocols", "twilio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2 and "PPLEX_TWILIO_AUTH_TOKEN" in done.stderr and words in done.stderr


def test_a_public_address_may_be_that_of_the_stream() -> None:
    for given in ("https://voice.example", "https://voice.example/", "https://voice.example/twilio"):
        assert ServeOptions(public_url=given).public_url == "https://voice.example"


def test_an_origin_with_a_slash_is_accepted(serve: Serve) -> None:
    with serve("--origin", "https://Friend.example:443/") as server:
        assert _status(server, "https://friend.example") == 426  # not refused: the server asks for a WebSocket
        assert _status(server, "https://foe.example") == 403


def _status(server: Running, origin: str) -> int:
    request = urllib.request.Request(f"{server.url}/api/chat", headers={"Origin": origin})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=20)
    answer.value.close()
    return answer.value.code


@pytest.mark.parametrize("place", ["page", "page/deeper", "link"])
def test_private_files_are_not_written_to_a_public_folder(place: str, tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "deeper").mkdir(parents=True)
    (page / "index.html").write_text("")
    (tmp_path / "link").symlink_to("page")
    with pytest.raises(ConfigError, match="recordings would be public"):
        check_folders(page, tmp_path / place)
    with pytest.raises(ConfigError, match="the key of the certificate would be public"):
        check_folders(page, None, tmp_path / place)
    check_folders(page, tmp_path, tmp_path)


def test_wrong_arguments_say_what_to_do(tiny_bundle: Bundle, server: Running, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    (tmp_path / "key.pem").write_text("nonsense")
    for arguments, message in (
        (["--port", str(server.port)], "Cannot listen on"),
        (["--host", "no.such.host.invalid"], "Cannot listen on"),
        (["--ssl", str(tmp_path / "none")], "lacks cert.pem and key.pem"),
        (["--ssl", str(tmp_path)], "cannot be used"),
        (["--ssl", str(tmp_path), "--self-signed"], "give only one of them"),
        (["--static", str(tmp_path)], "has no index.html"),
        (["--record", "/proc/nowhere"], "cannot be written to"),
        (["--token", ""], "--token is empty"),
        (["--control-token", ""], "--control-token is empty"),
        (["--memory-window", "20"], "it must be 64 to 94"),
        ([], "PPLEX_TOKEN is set, but empty"),
    ):
        environment = os.environ if arguments else {**os.environ, "PPLEX_TOKEN": ""}
        command = [*COMMAND, str(tiny_bundle.folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode in (1, 2), arguments
        assert message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("one, batches", [(True, [4]), (False, [1, 2, 4])])
def test_one_batch_size_equals_the_number_of_slots(tiny_bundle: Bundle, one: bool, batches: list[int]) -> None:
    async def load() -> Runtime:
        return Server(tiny_bundle, ServeOptions(slots=4, threads=1, device="cpu", one_batch_size=one))._load()

    assert run(load()).batches == batches
