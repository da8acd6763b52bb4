"""Words from the model's own text stream."""

import json
from pathlib import Path

import pytest
from planted_agents import copied

from pplex.fdb.agent_words import agent_words, words_of
from pplex.fdb.layout import Sample, samples
from pplex.fdb.score import score
from pplex.fdb.scoring import Scoring
from pplex.fdb.words import read_transcript
from pplex.runtime.errors import SampleError


def test_a_word_lasts_from_its_first_frame_to_the_end_of_its_last() -> None:
    pieces = ["PAD", "EPAD", " Hel", "PAD", "lo", "PAD", " you", "EOS"]
    found = [(word.text, round(word.start_s, 2), round(word.end_s, 2)) for word in words_of(pieces)]
    assert found == [("Hello", 0.16, 0.4), ("you", 0.48, 0.56)]


def test_bytes_become_characters_and_spaces_alone_no_word() -> None:
    pieces = ["<0xC3>", "<0xA9>", "t", "<0xC3>", "<0xA9>", " ", " ", "<0xFF>"]
    assert [word.text for word in words_of(pieces)] == ["été", "\ufffd"]
    assert list(words_of([])) == list(words_of(["PAD"] * 9)) == []


def sample_with(folder: Path, content: str) -> Sample:
    (folder / "a_turn_taking" / "1").mkdir(parents=True)
    (folder / "a_turn_taking" / "1" / "output.json").write_text('{"chunks": []}')
    (folder / "a_turn_taking" / "1" / "agent_text.json").write_text(content)
    return samples(folder)[0]


def test_words_before_the_interruptions_end_do_not_count(tmp_path: Path) -> None:
    sample = sample_with(tmp_path, json.dumps([" one", " two", "PAD", " three"]))
    assert [word.text for word in agent_words(sample, 0.2).words] == ["three"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[null]"])
def test_a_damaged_text_stream_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(SampleError, match="agent_text"):
        agent_words(sample_with(tmp_path, content), 0)


def test_the_text_stream_is_named_in_the_score(tmp_path: Path) -> None:
    folder = copied(tmp_path / "out", "candor_pause_handling/1")
    (folder / "candor_pause_handling" / "1" / "agent_text.json").write_text(json.dumps([" a", " b", " c", " d"]))
    found = score(folder, Scoring(agent_words))
    assert found.mean("candor_pause_handling", "tor").value == 1
    assert list(found.words_by) == ["the model's own text stream"]
    assert read_transcript(folder / "candor_pause_handling" / "1" / "output.json").words == ()  # as it was
