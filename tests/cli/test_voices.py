"""`pplex-export voices`, as a user runs it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from conversations import PCM, PERSONA, talk

from pplex.cli import main
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.session import Runtime
from pplex.runtime.synthetic_speech import speech_like


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in tiny_bundle.folder.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


@pytest.fixture
def ann(tmp_path: Path) -> Path:
    """A recording of 3.3 s, in stereo and at another rate: not a whole number of frames."""
    pcm = speech_like(41, 1920, seed=5)
    path = tmp_path / "ann.wav"
    soundfile.write(path, np.stack([pcm, pcm], axis=1)[:78_000], 22_050)
    return path


def voices(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["voices", *map(str, arguments)])


def listed(folder: Path) -> dict[str, tuple[float, int, str]]:
    rows = json.loads(voices("list", folder, "--json").stdout)
    return {row["name"]: (row["seconds"], row["steps"], row["source"]) for row in rows}


def refused(*arguments: str | Path, code: int = 1) -> str:
    result = voices(*arguments)
    assert result.exit_code == code and isinstance(result.exception, SystemExit), result.output
    return result.stderr


def test_voices_are_listed_with_seconds_steps_and_source(folder: Path, ann: Path) -> None:
    assert voices("add", folder, "Ann", ann).exit_code == 0
    released = (2.32, 29, "checkpoint")
    assert listed(folder) == {"Ann": (3.6, 45, "ann.wav"), **dict.fromkeys(("NATF0", "NATM1", "VARF2"), released)}
    text = voices("list", folder).stdout.splitlines()
    assert text[0].split() == ["voice", "seconds", "steps", "source"] and text[1].split() == [
        "Ann",
        "3.60",
        "45",
        "ann.wav",
    ]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_an_added_voice_equals_its_recording_bit_for_bit(
    tiny_bundle: Bundle, folder: Path, ann: Path, suffix: str
) -> None:
    recording = ann.with_name(f"other.{suffix}")
    soundfile.write(recording, *soundfile.read(ann))
    assert voices("add", folder, "Ann", recording).exit_code == 0
    with Runtime(tiny_bundle, slots=1).open(str(recording), PERSONA, seed=7) as session:
        expected = talk(session, PCM[0, :20])
    with Runtime.load(folder, slots=1).open("Ann", PERSONA, seed=7) as session:
        assert talk(session, PCM[0, :20]) == expected
    with Runtime.load(folder, slots=1).open("NATF0", PERSONA, seed=7) as session:
        assert talk(session, PCM[0, :20]) != expected


def test_adding_says_what_a_persons_voice_needs_and_what_is_doubtful(folder: Path, ann: Path) -> None:
    result = voices("add", folder, "Ann", ann)
    assert result.stdout == "Ann: 3.60 s, 45 steps, from ann.wav\n"
    assert "only with that person's consent" in result.stderr and "restart it" in result.stderr
    pcm, rate = soundfile.read(ann)
    soundfile.write(ann, pcm[: 2 * rate], rate)
    doubtful = voices("add", folder, "Short", ann)
    assert doubtful.exit_code == 0
    assert re.search(r"^Warning: ann\.wav: it lasts 2\.0 s\. 3 to 15 s are advised\.$", doubtful.stderr, re.MULTILINE)


def test_a_recording_is_heard_as_the_model_hears_it(folder: Path, ann: Path, tmp_path: Path) -> None:
    voices("add", folder, "Ann", ann)
    for out in (tmp_path / "sample.wav", tmp_path / "sample.flac"):
        assert voices("listen", folder, "Ann", "--out", out).exit_code == 0
        heard, rate = soundfile.read(out)
        assert (len(heard), rate) == (45 * 1920, 24_000) and np.abs(heard).max() > 0.01


def test_the_model_speaks_in_a_voice_without_a_recording(folder: Path, ann: Path, tmp_path: Path) -> None:
    def heard(name: str, *options: str) -> tuple[bytes, str]:
        result = voices("listen", folder, name, "--out", tmp_path / "sample.wav", "--seconds", "1", *options)
        assert result.exit_code == 0, result.output
        assert soundfile.info(tmp_path / "sample.wav").frames == 13 * 1920
        return (tmp_path / "sample.wav").read_bytes(), result.stderr

    sample, said = heard("NATF0")
    assert "NATF0 comes without a recording, so the model speaks in this voice." in said
    assert heard("NATF0")[0] == sample != heard("NATM1")[0]  # the same command gives the same sample
    assert heard("NATF0", "--seed", "1")[0] != sample
    voices("add", folder, "Ann", ann)
    assert heard("Ann", "--reply", "--text-prompt", "Be kind.")[0] != sample
    assert "--seconds and --seed have no effect without --reply" in refused(
        "listen", folder, "Ann", "--out", tmp_path / "a.wav", "--seed", "1", code=2
    )


def test_a_removed_voice_is_gone_and_can_be_added_again(tiny_bundle: Bundle, folder: Path, ann: Path) -> None:
    voices("add", folder, "Ann", ann)
    for name in ("Ann", "NATF0"):
        assert voices("remove", folder, name).exit_code == 0
    assert list(listed(folder)) == ["NATM1", "VARF2"]
    voices("add", folder, "NATF0", ann)
    assert listed(folder)["NATF0"][2] == "ann.wav"
    for name in ("NATF0", "NATM1", "VARF2"):
        voices("remove", folder, name)
    assert voices("list", folder, "--json").stdout == "[]\n"
    assert f"has no voices. To add one: pplex-export voices add {folder}" in voices("list", folder).stdout
    assert list(open_bundle(tiny_bundle.folder).voices) == ["NATF0", "NATM1", "VARF2"]


def test_wrong_names_are_refused_with_what_to_do(folder: Path, ann: Path, tmp_path: Path) -> None:
    known = "has no voice 'Bob'. It has NATF0, NATM1, VARF2.\nTo add one from a recording: pplex-export voices add"
    assert known in refused("listen", folder, "Bob", "--out", tmp_path / "b.wav")
    assert known in refused("remove", folder, "Bob")
    assert "already has a voice NATF0 (from: checkpoint)" in refused("add", folder, "NATF0", ann)
    for name in (ann, "a b", "none", "../x", "x.pt"):
        assert "The order is: pplex-export voices add BUNDLE NAME FILE" in refused("add", folder, name, ann)
    assert not (tmp_path / "b.wav").exists() and list(listed(folder)) == ["NATF0", "NATM1", "VARF2"]


def test_unusable_recordings_are_refused_and_change_nothing(folder: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000 * 10)
    soundfile.write(tmp_path / "silent.wav", 0 * noise, 24_000)
    soundfile.write(tmp_path / "long.wav", noise, 24_000)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF" + bytes(100))
    before = (folder / "manifest.json").read_bytes()
    for name, why in (
        ("silent", "is silent"),
        ("long", "room for 6.64 s"),
        ("damaged", "damaged"),
        ("no", "not exist"),
    ):
        assert why in refused("add", folder, "Ann", tmp_path / f"{name}.wav")
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["remove", "A"], ["listen", "A", "--out", "a.wav"], ["add", "A", "a.wav"]],
    ids=lambda a: a[0],
)
def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    command, *rest = arguments
    assert f"{tmp_path} is not a bundle" in refused(command, tmp_path, *rest)


def test_a_damaged_encoder_is_refused_before_a_voice_is_made_with_it(
    tiny_bundle: Bundle, tmp_path: Path, ann: Path
) -> None:
    folder = shutil.copytree(tiny_bundle.folder, tmp_path / "copy")
    data = bytearray((folder / "mimi_encode.data").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "mimi_encode.data").write_bytes(data)
    assert "mimi_encode.data does not have the SHA-256" in refused("add", folder, "Ann", ann)
    assert voices("list", folder).exit_code == 0
