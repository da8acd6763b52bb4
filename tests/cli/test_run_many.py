"""`pplex-export run` with several recordings, as a user runs it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from recorded import write_speech

from pplex.cli import main
from pplex.runtime.bundle import Bundle

AGENT = "--voice", "NATF0", "--seed", "5"
LENGTHS = {"a.wav": 0.7, "b.flac": 1.9, "deep/c.wav": 1.1, "deep/d.ogg": 0.3}  # s


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    for i, (name, seconds) in enumerate(LENGTHS.items()):
        write_speech(folder / name, seconds, 16_000 if i else 24_000, i)
    (folder / "notes.txt").write_text("no recording")
    return folder


def run(bundle: Bundle, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["run", str(bundle.folder), *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_answered_as_each_of_its_recordings_alone(tiny_bundle: Bundle, calls: Path, tmp_path: Path) -> None:
    """To the bit with as many slots. Without --slots, the batch size differs: the text is the same."""
    result = run(
        tiny_bundle, calls, "--out", tmp_path / "out", *AGENT, "--slots", "3", "--output-rate", "16000", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stderr.strip().splitlines()[-1])
    assert report["audio_s"] == pytest.approx(4.0, abs=0.01) and report["failures"] == {}
    found = files(tmp_path / "out")
    assert set(found) == {f"{Path(name).with_suffix('')}.{kind}" for name in LENGTHS for kind in ("wav", "json")}
    outputs = "--output-wav", tmp_path / "one.wav", "--output-text", tmp_path / "one.json"
    for name, seconds in LENGTHS.items():
        stem = str(Path(name).with_suffix(""))
        one = "--input-wav", calls / name, *outputs, *AGENT, "--output-rate", "16000"
        assert run(tiny_bundle, *one, "--slots", "3").exit_code == 0
        assert (tmp_path / "one.wav").read_bytes() == found[f"{stem}.wav"]
        assert (tmp_path / "one.json").read_bytes() == found[f"{stem}.json"]
        assert run(tiny_bundle, *one).exit_code == 0
        assert (tmp_path / "one.json").read_bytes() == found[f"{stem}.json"]
        info = soundfile.info(tmp_path / "out" / f"{stem}.wav")
        assert (info.samplerate, info.frames) == (16_000, round(seconds * 16_000))


def test_files_are_named_one_by_one_and_none_is_needed_twice(tiny_bundle: Bundle, calls: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, calls / "a.wav", calls / "deep/d.ogg", "--out", tmp_path, *AGENT)
    assert result.exit_code == 0, result.output
    assert set(files(tmp_path)) == {"a.wav", "a.json", "d.wav", "d.json"}


def test_a_bad_recording_is_listed_at_the_end(tiny_bundle: Bundle, calls: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(calls, tmp_path / "calls"))
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(100))
    soundfile.write(folder / "empty.wav", np.zeros(0), 16_000)
    result = run(tiny_bundle, folder, folder / "missing.wav", "--out", tmp_path / "out", *AGENT)
    assert result.exit_code == 1 and "Traceback" not in result.output
    *_, first, second, third = result.stderr.strip().splitlines()
    assert "3 without an answer:" in result.stderr
    assert "broken.wav" in first and "empty.wav holds no samples" in second and "missing.wav does not exist" in third
    assert len(files(tmp_path / "out")) == 2 * len(LENGTHS)


def test_only_bad_recordings(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = run(tiny_bundle, tmp_path / "missing.wav", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "missing.wav does not exist" in result.stderr and not list(tmp_path.iterdir())


def test_answers_are_not_answered(tiny_bundle: Bundle, calls: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(calls / "deep", tmp_path / "calls"))
    for _ in range(2):
        assert run(tiny_bundle, folder, "--out", folder / "answers", *AGENT).exit_code == 0
    assert set(files(folder / "answers")) == {"c.wav", "c.json", "d.wav", "d.json"}


@pytest.mark.parametrize(
    "arguments, words, code",
    [
        ((), "Give --input-wav, --output-wav and --output-text. For many: RECORDINGS and --out", 2),
        (("a.wav",), "Recordings need --out FOLDER", 2),
        (("--out", "out"), "--out needs RECORDINGS", 2),
        (("a.wav", "--out", "out", "--input-wav", "b.wav"), "are for one recording", 2),
        (("-", "--out", "out"), "Standard input is one recording: --input-wav -", 1),
        (("nothing", "--out", "out"), "nothing holds no recording", 1),
        (("a.wav", "deep/a.wav", "--out", "out"), "would both be answered in out/a.wav", 1),
        ((".", "--out", "."), "a.wav is named twice", 1),
        (("a.wav", "--out", "out", "--voice", "NATF9"), "Unknown voice 'NATF9'", 1),
        (("a.wav", "--out", "a.wav"), "a.wav is not a folder", 1),
    ],
)
def test_wrong_use_is_refused_and_leaves_nothing(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "deep/a.wav"):
        write_speech(tmp_path / name, 0.2)
    (tmp_path / "nothing").mkdir()
    before = files(tmp_path)
    result = run(tiny_bundle, *arguments)
    assert result.exit_code == code and words in result.stderr and "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit) and files(tmp_path) == before
