"""A prompt in chunks of several sizes, and sessions that reuse a cached prompt."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from pplex.bench.priming import _prompt_seconds, _random_codes
from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.stages import Stages


def test_the_command_reports_every_chunk_and_both_openings(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(main, ["bench", "priming", str(tiny_bundle.folder), "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    room = tiny_bundle.config.temporal.capacity - 2  # less than 300: the whole ring
    chunks = ["one by one", *(f"chunks of {size}" for size in (16, 32, 64, room))]
    openings = ["open, new persona", "open, known persona", "one frame"]
    assert list(report["timings"]) == [*chunks, *openings] and report["unit"] == "ms in total"
    assert all(0 < t["median_ms"] <= t["p99_ms"] for t in report["timings"].values())
    figures = report["figures"]
    assert figures["forced steps"] == figures["steps of the opened prompt"] == room
    assert figures["steps in a chunk of the runtime"] == 64
    assert figures["steps in the fastest chunk"] in (1, 16, 32, 64, room)
    assert figures["chunks of 64: time / time in the fastest chunks"] >= 1
    assert all(value > 0 for name, value in figures.items() if " over " in name or " of a frame" in name)


def test_last_chunk_ends_with_the_last_step(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(
        main, ["bench", "priming", str(tiny_bundle.folder), "--steps", "20", "--threads", "1", "--json"]
    )
    report = json.loads(result.stdout)
    assert [name for name in report["timings"] if name.startswith("chunks")] == ["chunks of 16", "chunks of 20"]
    assert report["figures"]["steps in a chunk of the runtime"] == 20


def test_more_steps_than_the_ring_holds_are_refused(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(main, ["bench", "priming", str(tiny_bundle.folder), "--steps", "95"])
    assert result.exit_code == 1 and "--steps 94 or less" in result.stderr


@pytest.mark.parametrize("size", [1, 16, 30])
def test_a_timed_prompt_runs_every_step_once_and_clears_the_slot(
    tiny_bundle: Bundle, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, taken = Stages(tiny_bundle, 1), []
    run_forced, codes = stages.run_forced, _random_codes(tiny_bundle.config, 30, np.random.default_rng(0))

    def counted(row: int, position: int, codes: np.ndarray, embedding: np.ndarray) -> None:
        taken.extend(range(position, position + len(codes)))
        run_forced(row, position, codes, embedding)

    monkeypatch.setattr(stages, "run_forced", counted)
    assert _prompt_seconds(stages, codes, size) > 0
    assert taken == list(range(30))
    assert not any(entries.any() for entries in stages.save(0, 30).values())
