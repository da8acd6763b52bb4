"""Commands on bundles without voices: of a Moshi model, which takes no prompt, and of a PersonaPlex model."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from folders import MOSHI

from pplex.cli import main
from pplex.runtime.bundle import Bundle


def run(bundle: Bundle, folder: Path, *options: str) -> Result:
    user = folder / "user.wav"
    soundfile.write(user, np.random.default_rng(0).normal(0, 0.05, 24_000), 24_000)
    outputs = ["--output-wav", str(folder / "agent.wav"), "--output-text", str(folder / "agent.json")]
    return CliRunner().invoke(
        main, ["run", str(bundle.folder), "--input-wav", str(user), *outputs, "--seed", "1", *options]
    )


@pytest.mark.parametrize("kind", ["moshi", "voiceless"])
def test_run_answers_without_options(kind: str, moshi_bundle: Bundle, voiceless_bundle: Bundle, tmp_path: Path) -> None:
    result = run(moshi_bundle if kind == "moshi" else voiceless_bundle, tmp_path)
    assert result.exit_code == 0, result.output
    sound, rate = soundfile.read(tmp_path / "agent.wav")
    assert (len(sound), rate) == (24_000, 24_000) and np.isfinite(sound).all() and np.abs(sound).max() > 0.001
    assert len(json.loads((tmp_path / "agent.json").read_text())) == 13


@pytest.mark.parametrize(
    "arguments", [("add", "Ann", "no-such.wav"), ("listen", "Ann", "--out", "a.wav"), ("remove", "Ann"), ("list",)]
)
def test_no_voices_command_advises_to_add_one_to_moshi(moshi_bundle: Bundle, arguments: tuple[str, ...]) -> None:
    command, *others = arguments
    result = CliRunner().invoke(main, ["voices", command, str(moshi_bundle.folder), *others])
    assert result.exit_code == (0 if command == "list" else 1)
    assert "holds a Moshi model, which has its own voice only" in result.output and "voices add" not in result.output


@pytest.mark.parametrize("option", [("--voice", "NATF2"), ("--text-prompt", "You are kind.")])
def test_run_refuses_a_prompt_for_moshi(moshi_bundle: Bundle, tmp_path: Path, option: tuple[str, str]) -> None:
    result = run(moshi_bundle, tmp_path, *option)
    assert result.exit_code == 1 and "takes neither a voice nor a persona. Leave both out." in result.output
    assert not (tmp_path / "agent.wav").exists()


def test_run_refuses_a_voice_that_is_not_there(voiceless_bundle: Bundle, tmp_path: Path) -> None:
    result = run(voiceless_bundle, tmp_path, "--voice", "NATF2")
    assert (
        result.exit_code == 1
        and "Unknown voice 'NATF2'. This bundle has no voices; or name an audio file" in result.output
    )


def test_moshi_is_validated(moshi_bundle: Bundle, tmp_path: Path) -> None:
    """Every section that needs no second of speech: layers, drift past the ring's end, the conversation."""
    arguments = ["validate", str(moshi_bundle.folder), "--reference", str(MOSHI / "checkpoint"), "--frames", "130"]
    result = CliRunner().invoke(main, [*arguments, "--only", "drift", "--only", "conversation", "--threads", "2"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", [("frame", "--frames", "20"), ("soak", "--frames", "80")])
def test_moshi_is_timed(moshi_bundle: Bundle, command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["bench", command[0], str(moshi_bundle.folder), *command[1:], "--threads", "1"])
    assert result.exit_code == 0, result.output


def test_priming_of_moshi_cannot_be_timed(moshi_bundle: Bundle) -> None:
    result = CliRunner().invoke(main, ["bench", "priming", str(moshi_bundle.folder)])
    assert result.exit_code == 1 and "a Moshi model, which takes no prompt: nothing is primed" in result.output
