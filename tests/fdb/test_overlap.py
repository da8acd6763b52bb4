"""Version 1.5: who speaks when, how fast, and what the judge says."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as some
from planted_agents import PLANTED

from pplex.cli import main
from pplex.fdb.overlap import lengths, merged, rate, rates, responses, split_at, stops, without_tails
from pplex.fdb.segments import read_recording, segments_s
from pplex.fdb.words import Word

SAMPLE = "user_interruption/1"
SPOKEN = {"input": PLANTED / "icc_backchannel/1/output.wav", "output": PLANTED / "icc_backchannel/3/output.wav"}
speech = some.lists(some.tuples(some.integers(0, 300), some.integers(1, 30)), max_size=8)


def words(*times: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(Word("word", *time) for time in times)


def test_short_pauses_do_not_end_a_stretch() -> None:
    assert merged([(0, 1), (1.5, 2), (2.75, 3)], 0.5) == [(0, 2), (2.75, 3)]
    assert merged([(2, 3), (0, 5)], 0.5) == [(0, 5)]
    assert merged([], 0.5) == []


def test_a_stop_is_where_both_speak() -> None:
    assert stops([(0, 1), (3, 4)], [(1.5, 3.4), (5, 6)]) == [(3, 3.4)]
    assert stops([(0, 10)], [(1, 2), (3, 4)]) == [(1, 2), (3, 4)]
    assert stops([(0, 1)], [(1, 2)]) == []
    assert lengths([(1.00049, 2.0)]) == (1.0,)


def test_a_response_is_from_the_last_end_of_the_user_to_the_next_start() -> None:
    assert responses([(0, 1), (3, 4)], [(1.5, 3.4), (5, 6)]) == [(1, 1.5), (4, 5)]
    assert responses([(0, 1), (2, 3)], [(4, 5)]) == [(3, 4)]  # one for a start
    assert responses([(0, 1)], [(1, 2)]) == []  # it does not start after the end
    assert responses([(0, 1)], []) == []


@given(speech, speech)
def test_overlaps_cover_what_both_say(user: list[tuple[int, int]], agent: list[tuple[int, int]]) -> None:
    """Seconds in which both speak, counted in steps of 0.1 s."""
    sides = [merged([(start / 10, (start + length) / 10) for start, length in side], 0.5) for side in (user, agent)]
    steps = [{i for start, end in side for i in range(round(start * 10), round(end * 10))} for side in sides]
    assert sum(lengths(stops(*sides))) == pytest.approx(len(steps[0] & steps[1]) / 10)


def test_the_split_is_at_a_word() -> None:
    said = words((1, 2), (2, 3), (5, 6))
    assert split_at(said, 0.5) == 1 and split_at(said, 2.5) == 2 and split_at(said, 2) == 2
    assert split_at(said, 4) == 5 and split_at(said, 6) == 6
    assert split_at((), 4) == 4


def test_rates_are_words_per_minute_from_the_first_start_to_the_last_end() -> None:
    said = words((1, 2), (2, 3), (5, 5.5), (5.5, 6.5))
    assert rates(said, 4, 10) == (60, 80)
    assert rates(said, 9, 10) == (pytest.approx(4 / 5.5 * 60), 0)  # all before
    assert rates((), 4, 10) == (0, 0)  # as in the benchmark
    assert rates(words((0, 1)), 0, 10) == (None, 60)  # nothing is before the first word
    assert rate(words((1, 1))) == 0


def test_means_of_rates_leave_out_the_tails() -> None:
    values = [float(i) for i in range(21)]
    assert without_tails(values) == values[1:-1]
    assert without_tails([0.0, 9.0]) == [0, 9]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """An interruption, with the recordings and words of both versions."""
    sample = tmp_path / "out" / SAMPLE
    sample.mkdir(parents=True)
    for side, wav in SPOKEN.items():
        shutil.copy(wav, sample / f"{side}.wav")
        shutil.copy(wav, sample / f"clean_{side}.wav")
        for name in (side, f"clean_{side}"):
            chunks = [{"text": name, "timestamp": [i, i + 0.5]} for i in (1, 2, 8, 9)]
            (sample / f"{name}.json").write_text(json.dumps({"chunks": chunks}))
    (sample / "metadata.json").write_text(json.dumps({"timestamps": [3.0, 4.0]}))
    return tmp_path / "out"


def scored(folder: Path, *arguments: str | Path) -> tuple[Result, dict[str, Any]]:
    done = CliRunner().invoke(main, ["fdb", "score", *map(str, (folder, *arguments, "--json"))])
    found = json.loads(done.stdout) if done.stdout.startswith("{") else {"sections": []}
    return done, {one["name"]: one["value"] for section in found["sections"] for one in section["measures"]}


def test_a_sample_is_measured(answers: Path, judge_with: Any) -> None:
    _, server = judge_with((200, '{"behaviour": "C_RESUME"}'))
    done, values = scored(answers, "--judge", server.url, "--judge-model", "m")
    assert done.exit_code == 0, done.output
    user, agent = (
        merged(segments_s(read_recording(SPOKEN[key])), pause) for key, pause in zip(SPOKEN, (0.6, 0.5), strict=True)
    )
    assert user and agent
    for name, expected in (("stop", lengths(stops(user, agent))), ("response", lengths(responses(user, agent)))):
        mean = np.mean(expected) if expected else None
        assert values[f"user_interruption.{name}_latency"] == (None if mean is None else pytest.approx(mean))
    assert values["user_interruption.rate_before"] == 80 and values["user_interruption.rate_after"] == 80
    classes = [values[f"user_interruption.{name}"] for name in ("respond", "resume", "uncertain", "unknown")]
    assert classes == [0, 1, 0, 0]
    asked = json.loads(server.requests[0][2]["messages"][1]["content"])
    assert asked["event"] == [3.0, 4.0] and asked["kind"] == "user interruption"
    for key, name in (("user_without", "clean_input"), ("assistant_with", "output"), ("user_with", "input")):
        assert asked[key].startswith(f"{name}[1.0-1.5] ")


def test_latencies_are_means_over_the_intervals_of_all_samples(answers: Path) -> None:
    """One sample has two stops of 1 and 3 s, the other one of 8 s: the mean is 4 s, not 5 s."""
    from pplex.fdb.layout import Sample, Task
    from pplex.fdb.score import SampleScore, Score

    def one(number: str, *stops_s: float) -> SampleScore:
        sample = Sample(answers, f"user_interruption/{number}", Task.OVERLAP_INTERRUPTION)
        mean = {"stop_latency": sum(stops_s) / len(stops_s)}
        return SampleScore(sample, mean, intervals={"stop_latency": stops_s})

    found = Score(answers, (one("1", 1, 3), one("2", 8))).mean("user_interruption", "stop_latency")
    assert (found.value, found.count) == (4, 3)


def test_the_event_and_the_user_may_be_in_the_data(answers: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / SAMPLE
    data.mkdir(parents=True)
    for name in ("metadata.json", "input.wav", "clean_input.wav"):
        (answers / SAMPLE / name).rename(data / name)
    done, values = scored(answers, "--data", tmp_path / "data")
    assert done.exit_code == 0 and values["user_interruption.rate_before"] == 80


def test_words_of_both_sides_are_needed_for_a_class(answers: Path, judge_with: Any) -> None:
    _, server = judge_with((200, "RESPOND"))
    (answers / SAMPLE / "clean_input.json").unlink()
    done, values = scored(answers, "--judge", server.url, "--judge-model", "m")
    assert (
        done.exit_code == 1 and "clean_input.json is missing: make it with --words whisper or parakeet" in done.stdout
    )
    assert values["user_interruption.rate_before"] == 80 and not server.requests


def test_a_silent_agent_is_measured(answers: Path) -> None:
    (answers / SAMPLE / "output.json").write_text('{"chunks": []}')
    soundfile.write(answers / SAMPLE / "output.wav", np.zeros(160_000), 16_000)
    done, values = scored(answers)
    assert done.exit_code == 0 and values["user_interruption.stop_latency"] is None
    assert values["user_interruption.rate_after"] == 0


@pytest.mark.parametrize("content", ["{", '{"timestamps": [1]}', '{"timestamps": "12"}', "[]"])
def test_a_damaged_event_is_a_row(answers: Path, content: str) -> None:
    (answers / SAMPLE / "metadata.json").write_text(content)
    done, _ = scored(answers)
    assert done.exit_code == 1 and "metadata.json" in done.stdout and "Traceback" not in done.output
