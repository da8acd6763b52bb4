"""Rules for every command: empty values are refused, and a closed output is an error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pplex.cli import main
from pplex.cli.command import MAY_BE_EMPTY, Command
from pplex.runtime.bundle import Bundle

MAIN = "from pplex.cli import main; main()"


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


ALL = list(commands(main))


def test_every_command_follows_the_common_rules() -> None:
    assert {" ".join(path) for path, command in ALL if not isinstance(command, Command)} == set()
    assert len(ALL) > 20


@pytest.mark.parametrize("path, command", ALL, ids=[" ".join(path) for path, _ in ALL])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_value_is_refused_by_every_option(path: tuple[str, ...], command: click.Command, empty: str) -> None:
    """An unset shell variable gives "", which could mean all addresses, the working folder, or no token."""
    takes_values = [p for p in command.params if not getattr(p, "is_flag", False) and p.name not in MAY_BE_EMPTY]
    for parameter in takes_values:
        option = parameter.opts[:1] if isinstance(parameter, click.Option) else []
        result = CliRunner().invoke(main, [*path, *option, *[empty] * max(1, parameter.nargs)])
        assert result.exit_code == 2 and "is empty" in result.stderr, (parameter.name, result.output)


@pytest.mark.parametrize("token", ["", " ", "\n"])
@pytest.mark.parametrize("arguments", [["serve", "bundle"], ["load", "http://localhost:8998"]])
def test_an_empty_token_variable_is_refused(arguments: list[str], token: str) -> None:
    result = CliRunner().invoke(main, arguments, env={"PPLEX_TOKEN": token})
    assert result.exit_code == 2 and "PPLEX_TOKEN is set, but empty" in result.stderr
    given = CliRunner().invoke(main, [*arguments, "--token", "secret", "--origin", "x"], env={"PPLEX_TOKEN": token})
    assert given.exit_code == 2 and "PPLEX_TOKEN" not in given.stderr  # the command line overrides the variable


def test_an_unset_shell_variable_does_not_open_the_server(tiny_bundle: Bundle, tmp_path: Path) -> None:
    shell = 'exec "$0" -c "$1" serve "$2" --port 0 --device cpu --host "$HOST_THAT_IS_NOT_SET"'
    command = ["sh", "-c", shell, sys.executable, MAIN, str(tiny_bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and "--host is empty" in done.stderr and not done.stdout


def test_an_empty_persona_means_none() -> None:
    result = CliRunner().invoke(main, ["load", "nowhere", "--persona", ""])
    assert "not the address of a server" in result.stderr


@pytest.mark.parametrize("closed", ["1 2"])
def test_closed_streams_do_not_stop_the_work(closed: str, tmp_path: Path) -> None:
    done = _with_closed(closed, "synth", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made/model.safetensors").is_file()


@pytest.mark.parametrize("closed", ["2", "0 1 2"])
def test_a_run_without_streams_writes_its_files(closed: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Files opened later must not get the descriptor of a stream that libraries print to."""
    wav = Path(__file__).parents[1] / "golden/tiny/checkpoint/voices/synthetic.wav"
    outputs = ["--output-wav", str(tmp_path / "agent.wav"), "--output-text", str(tmp_path / "agent.json")]
    done = _with_closed(closed, "run", str(tiny_bundle.folder), "--input-wav", str(wav), "--voice", "none", *outputs)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "agent.wav").read_bytes()[:4] == b"RIFF" and (tmp_path / "agent.json").read_text()[0] == "["


@pytest.mark.parametrize("arguments", [["inspect"], ["bench", "host"], ["validate", "--reference", "."]])
def test_an_unprintable_result_fails_before_the_work(arguments: list[str], tiny_bundle: Bundle) -> None:
    done = _with_closed("1", *arguments, str(tiny_bundle.folder))
    assert done.returncode == 1 and "standard output is closed" in done.stderr and "Traceback" not in done.stderr
    assert _with_closed("0 1 2", *arguments, str(tiny_bundle.folder)).returncode == 1


def test_audio_for_a_closed_output_is_not_computed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    outputs = ["--output-wav", "-", "--output-text", str(tmp_path / "agent.json")]
    done = _with_closed("1", "run", str(tiny_bundle.folder), "--input-wav", "no.wav", *outputs)
    assert done.returncode == 1 and "Standard output is closed" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: only Linux has it")
def test_a_full_disk_is_reported(tiny_bundle: Bundle) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", MAIN, "inspect", str(tiny_bundle.folder), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "Make room" in done.stderr and "Traceback" not in done.stderr


def _with_closed(streams: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with some of its standard streams closed, as a shell closes them."""
    closing = " ".join(f"{number}>&-" for number in streams.split())
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
