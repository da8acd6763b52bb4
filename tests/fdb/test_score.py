"""Scores of planted agents equal the benchmark's own, and what cannot be read is a row and not the end."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted_agents import copied, official, planted

from pplex.fdb.layout import Task
from pplex.fdb.people import read_people
from pplex.fdb.score import SampleScore, Score, score
from pplex.fdb.scoring import Scoring
from pplex.runtime.errors import ConfigError

BACKCHANNEL, TURN = "icc_backchannel/3", "candor_turn_taking/5"


@cache
def scored() -> dict[str, SampleScore]:
    return {one.sample.name: one for one in score(planted()).samples}


@pytest.mark.parametrize("name", official())
def test_every_planted_agent_has_the_benchmarks_own_figures(name: str) -> None:
    expected = official()[name]
    found = scored()[next(key for key in scored() if f"/{key}".endswith(f"/{name}"))]
    values = found.values
    assert not found.fault
    if "crash" in expected:
        assert values["tor"] == 0 and "latency" not in values
    if "TOR" in expected:
        assert values["tor"] == pytest.approx(expected["TOR"], abs=1e-9)
    if "latency" in expected:
        assert values["latency"] == pytest.approx(expected["latency"], abs=1e-9)
    if "freq" in expected:
        assert f"{values['frequency']:.4f}" == f"{expected['freq']:.4f}"


def one(scores: Score, name: str) -> SampleScore:
    return next(found for found in scores.samples if found.sample.name == name)


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    return copied(tmp_path / "out")


def test_both_definitions_of_backchannels_are_given(agents: Path) -> None:
    values, length_s = one(score(agents), BACKCHANNEL).values, 257_686 / 16_000
    assert values["frequency"] == pytest.approx(2 / length_s)
    assert values["frequency_before_1d40caa"] == pytest.approx(1 / length_s)


def test_a_folder_of_one_task_is_scored_too(agents: Path) -> None:
    found = score(agents / "candor_turn_taking")
    assert found.collections == {"candor_turn_taking": Task.TURN_TAKING}
    assert found.mean("candor_turn_taking", "tor").value == 0.75


def test_silent_agents_have_a_rate_and_no_latency(tmp_path: Path) -> None:
    silent = ("candor_turn_taking/1", "synthetic_user_interruption/3", "candor_pause_handling/1", "icc_backchannel/1")
    folder = copied(tmp_path / "out", *silent)
    (folder / silent[3] / "output.json").write_text('{"text": "", "chunks": []}')
    soundfile.write(folder / silent[3] / "output.wav", np.zeros(16_000), 16_000)
    found = score(folder, Scoring(people={"1": (1.0,)}))
    assert not found.faults
    assert [found.mean(name, "tor").value for name in found.collections] == [0, 0, 0, 0]
    assert found.mean("candor_turn_taking", "latency").value is None
    assert found.mean("icc_backchannel", "frequency").value == 0
    assert found.mean("icc_backchannel", "jsd").value == 1


def test_the_benchmarks_files_may_be_in_another_folder(agents: Path, tmp_path: Path) -> None:
    moved = tmp_path / "data" / TURN
    moved.mkdir(parents=True)
    (agents / TURN / "turn_taking.json").rename(moved / "turn_taking.json")
    assert "--data" in one(score(agents), TURN).fault
    assert one(score(agents, Scoring(data=tmp_path / "data")), TURN).values["latency"] == pytest.approx(0.2)


def test_unknown_metadata_and_other_folders_are_left_out_and_counted(agents: Path) -> None:
    (agents / "synthetic_user_interruption" / "3" / "metadata.json").write_text("{}")
    (agents / "mine" / "1").mkdir(parents=True)
    (agents / "mine" / "1" / "output.json").write_text('{"chunks": []}')
    found = score(agents)
    assert found.left_out == {"synthetic_user_interruption": 1, "mine": 1}
    assert found.mean("synthetic_user_interruption", "tor").count == 1


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no samples"):
        score(tmp_path)


DAMAGED = {
    "empty": b"",
    "cut": b'{"text": "", "chunks": [',
    "latin-1": '{"text": "\xe9"}'.encode("latin-1"),
    "a list": b"[]",
    "chunks that are a text": b'{"chunks": "abc"}',
    "a word without time": b'{"chunks": [{"text": "a"}]}',
    "null": b'{"chunks": [{"text": "a", "timestamp": [1, null]}]}',
    "nan": b'{"chunks": [{"text": "a", "timestamp": [NaN, 2]}]}',
    "infinite": b'{"chunks": [{"text": "a", "timestamp": [0, 1e999]}]}',
    "a huge integer": b'{"chunks": [{"text": "a", "timestamp": [0, 1' + b"0" * 400 + b"]}]}",
    "true": b'{"chunks": [{"text": "a", "timestamp": [false, true]}]}',
    "text in time": b'{"chunks": [{"text": "a", "timestamp": "12"}]}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("file", ["output.json", "turn_taking.json"])
def test_a_damaged_file_is_one_row_and_the_others_are_scored(agents: Path, file: str, content: bytes) -> None:
    (agents / TURN / file).write_bytes(content)
    found = score(agents)
    assert [name for name, _ in found.faults] == [TURN] and file in found.faults[0][1]
    assert found.mean("candor_turn_taking", "tor").count == 3


RECORDINGS = {
    "missing": None,
    "empty": b"",
    "no audio": b"RIFF and nothing else",
    "without samples": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\0\0\0\0",
}


@pytest.mark.parametrize("content", RECORDINGS.values(), ids=RECORDINGS)
def test_a_damaged_recording_is_one_row(agents: Path, content: bytes | None) -> None:
    path = agents / BACKCHANNEL / "output.wav"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = score(agents)
    assert [name for name, _ in found.faults] == [BACKCHANNEL] and "output.wav" in found.faults[0][1]
    assert found.mean("icc_backchannel", "tor").count == 1


def test_half_a_character_in_the_words_can_be_reported(agents: Path) -> None:
    (agents / TURN / "output.json").write_text('{"chunks": [{"text": "\\ud800", "timestamp": [1, 2]}]}')
    assert one(score(agents), TURN).text.encode() == b"?"


def test_jsd_needs_peoples_distribution_of_the_sample(agents: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo" / "evaluation"
    repo.mkdir(parents=True)
    (repo / "icc_gt_distribution.json").write_text(json.dumps({"1": [0.5, 0.25, 0.25]}))
    found = score(agents, Scoring(people=read_people(tmp_path / "repo")))
    assert [name for name, _ in found.faults] == ["icc_backchannel/3"]
    assert one(found, "icc_backchannel/3").values["tor"] == 0  # what was measured before stays
    assert 0 < one(found, "icc_backchannel/1").values["jsd"] < 0.8326
    assert found.mean("icc_backchannel", "jsd").count == 1


@pytest.mark.parametrize(
    "content", ["", "[]", '{"1": []}', '{"1": [0, 0]}', '{"1": [-1, 2]}', '{"1": [NaN]}', '{"1": ["a"]}', '{"1": 5}']
)
def test_a_damaged_distribution_is_refused_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "icc_gt_distribution.json").write_text(content)
    with pytest.raises(ConfigError, match="icc_gt_distribution"):
        read_people(tmp_path)


def test_a_checkout_without_the_distribution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --repo out"):
        read_people(tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        read_people(tmp_path / "missing")
