"""The commands, as a user runs them."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 1.03 s at 24 kHz: not a whole number of frames."""
    path = tmp_path_factory.mktemp("speech") / "user.wav"
    seconds = np.arange(24_720) / 24_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * seconds) * np.sin(2 * np.pi * 3 * seconds), 24_000)
    return path


def run(bundle: Bundle, speech: Path | str, out: Path, *options: str, **kwargs: Any) -> Result:
    arguments = ["run", str(bundle.folder), "--input-wav", str(speech), "--voice", "NATF0"]
    outputs = ["--output-wav", str(out / "agent.wav"), "--output-text", str(out / "agent.json")]
    return CliRunner().invoke(main, [*arguments, *outputs, *options], **kwargs)


def test_output_is_as_long_as_the_input_with_a_piece_of_text_per_frame(
    tiny_bundle: Bundle, speech: Path, tmp_path: Path
) -> None:
    result = run(tiny_bundle, speech, tmp_path, "--seed", "1")
    assert result.exit_code == 0, result.output
    heard, rate = soundfile.read(tmp_path / "agent.wav")
    assert (len(heard), rate) == (24_720, 24_000) and np.abs(heard).max() > 0.01
    pieces = json.loads((tmp_path / "agent.json").read_text())
    assert len(pieces) == 13 and all(isinstance(piece, str) and piece for piece in pieces)
    assert "real-time factor" in result.stderr


def test_a_seed_repeats_the_output_and_greedy_ignores_it(tiny_bundle: Bundle, speech: Path, tmp_path: Path) -> None:
    def heard(*options: str) -> bytes:
        assert run(tiny_bundle, speech, tmp_path, *options).exit_code == 0
        return (tmp_path / "agent.wav").read_bytes()

    assert heard("--seed", "1") == heard("--seed", "1") != heard("--seed", "2")
    assert heard("--greedy") == heard("--greedy", "--seed", "5")


@pytest.mark.parametrize("suffix, rate, channels", [("flac", 16_000, 2), ("ogg", 48_000, 1), ("wav", 8_000, 2)])
def test_other_formats_rates_and_channels_are_read_and_written(
    tiny_bundle: Bundle, tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"user.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (rate, channels)), rate)
    assert run(tiny_bundle, path, tmp_path).exit_code == 0
    assert soundfile.info(tmp_path / "agent.wav").frames == 24_000


def test_dash_is_standard_input_and_output(tiny_bundle: Bundle, speech: Path, tmp_path: Path) -> None:
    code = "from pplex.cli import main; main()"
    arguments = ["run", str(tiny_bundle.folder), "--input-wav", "-", "--output-wav", "-", "--voice", "NATF0"]
    command = [sys.executable, "-c", code, *arguments, "--output-text", str(tmp_path / "agent.json"), "--json"]
    result = subprocess.run(command, input=speech.read_bytes(), capture_output=True, check=True)
    heard, _ = soundfile.read(io.BytesIO(result.stdout))
    assert len(heard) == 24_720
    report = json.loads(result.stderr.decode().strip().splitlines()[-1])
    assert report["audio_s"] == 1.03 and {"load", "prime", "frames", "temporal"} <= report["seconds"].keys()


def test_both_outputs_cannot_be_standard_output(tiny_bundle: Bundle, speech: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, speech, tmp_path, "--output-wav", "-", "--output-text", "-")
    assert result.exit_code == 2 and "Only one" in result.stderr


@pytest.mark.parametrize(
    "options, words",
    [
        (["--voice", "NATF9"], "Unknown voice 'NATF9'. This bundle has NATF0, NATM1, VARF2"),
        (["--text-prompt", "word " * 300], "Shorten the persona to"),
        (["--temp-audio", "0"], "audio_temperature is 0.0"),
        (["--output-wav", "nowhere/agent.wav"], "the folder nowhere does not exist"),
        (["--output-wav", "agent.mp3"], ".flac"),
        (["--input-wav", "nothing.wav"], "nothing.wav does not exist"),
        (["--device", "cuda"], "not built for GPUs"),
    ],
)
def test_bad_input_is_an_error_and_leaves_nothing(
    tiny_bundle: Bundle, speech: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = run(tiny_bundle, speech, tmp_path, *options)
    assert result.exit_code == 1 and words in result.stderr and result.stderr.startswith("Error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "samples, words",
    [(np.zeros(0, np.float32), "holds no samples"), (np.array([0.1, np.nan, 0.2], np.float32), "NaN or infinite")],
)
def test_recordings_without_sound_are_refused(
    tiny_bundle: Bundle, tmp_path: Path, samples: np.ndarray[Any, Any], words: str
) -> None:
    soundfile.write(tmp_path / "user.wav", samples, 24_000, subtype="FLOAT")
    result = run(tiny_bundle, tmp_path / "user.wav", tmp_path)
    assert result.exit_code == 1 and words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["user.wav"]


def antiphase(path: Path) -> Path:
    """A recording of 1 s whose channels cancel out."""
    left = np.random.default_rng(0).normal(0, 0.1, 24_000)
    soundfile.write(path, np.stack([left, -left], axis=1), 24_000)
    return path


def test_each_audio_warning_is_printed_once_as_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Run in a process of its own, where a Python warning would add a line of our source."""
    path = antiphase(tmp_path / "user.wav")
    code = "from pplex.cli import main; main()"
    arguments = ["run", str(tiny_bundle.folder), "--input-wav", str(path), "--output-wav", str(tmp_path / "agent.wav")]
    command = [sys.executable, "-c", code, *arguments, "--output-text", "-", "--voice", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = f"{path}: its 2 channels cancel out when they are mixed: only channel 1 is heard."
    assert done.stderr.splitlines().count(f"Warning: {line}") == 1
    assert "audio.py" not in done.stderr and "warn(" not in done.stderr
    assert json.loads(done.stderr.strip().splitlines()[-1])["warnings"] == [line]
    assert len(json.loads(done.stdout)) == 13


def test_both_parts_of_a_chained_file_are_answered(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = run(tiny_bundle, CASES / "chained.ogg", tmp_path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stderr.strip().splitlines()[-1])["warnings"] == []
    assert soundfile.info(tmp_path / "agent.wav").frames == 96_000


@pytest.mark.parametrize("option", ["--input-wav", "--voice"])
def test_integers_as_floats_are_refused_as_input_and_as_voice(
    tiny_bundle: Bundle, speech: Path, tmp_path: Path, option: str
) -> None:
    samples, _ = soundfile.read(speech)
    soundfile.write(tmp_path / "unscaled.wav", samples * 32768, 24_000, subtype="FLOAT")
    result = run(tiny_bundle, speech, tmp_path, option, str(tmp_path / "unscaled.wav"))
    assert result.exit_code == 1 and "divide them by 32,768" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["unscaled.wav"]


def test_a_voice_recording_is_used_to_its_end(tiny_bundle: Bundle, speech: Path, tmp_path: Path) -> None:
    """Two files joined by cat are one voice as long as both."""
    (tmp_path / "twice.wav").write_bytes(2 * speech.read_bytes())
    runtime = Runtime(tiny_bundle, slots=1, threads=1, device="cpu")
    steps = []
    for voice in (speech, tmp_path / "twice.wav"):
        with runtime.open(voice, seed=0) as session:
            steps.append(int(runtime.ring.step[session.row]))
    assert steps[1] - steps[0] == 13  # frames of 1.03 s


def test_a_changed_byte_in_the_bundle_is_refused(tiny_bundle: Bundle, speech: Path, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    data = bytearray((folder / "temporal.data").read_bytes())
    data[1000] ^= 1
    (folder / "temporal.data").write_bytes(data)
    result = run(replace(tiny_bundle, folder=folder), speech, tmp_path)
    assert result.exit_code == 1 and "temporal.data does not have the SHA-256" in result.stderr


def test_two_outputs_to_the_same_file_are_refused(tiny_bundle: Bundle, speech: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, speech, tmp_path, "--output-text", str(tmp_path / "." / "agent.wav"))
    assert result.exit_code == 1 and "named twice" in result.stderr
    recording = speech.read_bytes()
    result = run(tiny_bundle, speech, tmp_path, "--output-wav", str(speech))
    assert result.exit_code == 1 and "named twice" in result.stderr
    assert speech.read_bytes() == recording and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    ["", "synth", "build", "run", "bench", "validate", "fdb run"]
    + [
        f"bench {name}"
        for name in ("codec", "floor", "frame", "host", "load", "precision", "priming", "scaling", "soak")
    ],
)
def test_help_is_one_page(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--help"])
    assert result.exit_code == 0 and len(result.output.splitlines()) < 60


def test_bench_frame_measures_every_stage(tiny_bundle: Bundle) -> None:
    arguments = ["bench", "frame", str(tiny_bundle.folder), "--frames", "20", "--sessions", "2", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["timings"].keys() == {"mimi_encode", "temporal", "depth", "mimi_decode", "host", "frame"}
    assert all(0 < t["median_ms"] <= t["p99_ms"] for t in report["timings"].values())


def test_bench_host_measures_every_number_of_sessions(tiny_bundle: Bundle) -> None:
    arguments = ["bench", "host", str(tiny_bundle.folder), "--frames", "20", "--sessions", "1", "--sessions", "3"]
    assert "1 session " in CliRunner().invoke(main, arguments).output
    report = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert list(report["timings"]) == ["1 session", "3 sessions"]
    assert report["figures"]["frames"] == 20
    for sessions, timing in report["timings"].items():
        assert 0 < timing["median_ms"] <= timing["p99_ms"]
        assert report["figures"][f"{sessions}, bytes allocated besides the replies"] > 0


def test_bench_codec_runs_both_sides_on_the_same_frames() -> None:
    from folders import TINY

    result = CliRunner().invoke(main, ["bench", "codec", str(TINY / "checkpoint"), "--frames", "20", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["timings"]) == 4 and report["figures"]["codes that agree"] == "100.00%"
