"""How many conversations a replica holds, and which limit decides."""

import json
from pathlib import Path
from typing import Any

import pytest

from pplex.engines.plan_report import Model, open_model
from pplex.fleet.slots import count_slots, memory_plan, slots_in_time
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.errors import ConfigError, GpuError
from pplex.runtime.gpus import parse_gpu


def report(path: Path, *frames: tuple[int, int, float]) -> Path:
    """A report of `bench stages` with (slots, context steps, p99 in ms) of whole frames."""
    rows: list[dict[str, Any]] = [
        {"slots": slots, "context_steps": steps, "stage": stage, "p50_ms": p99 / 2, "p95_ms": p99, "p99_ms": p99}
        for slots, steps, p99 in frames
        for stage in ("temporal", "frame")
    ]
    path.write_text(json.dumps({"title": "stages", "rows": rows, "figures": {}, "machine": {"device": "a test GPU"}}))
    return path


def test_memory_decides_without_a_measurement_and_says_that_speed_is_unknown() -> None:
    found = count_slots(None, memory_plan(Model(RELEASED), parse_gpu("l4"), "int4", None), None)
    assert found.slots == 10 and "memory of L4 in int4, 3000 steps" in found.reason
    (note,) = found.notes
    assert "nothing shows that 10 conversations are answered in time" in note and "bench stages" in note


def test_without_a_precision_the_one_that_a_build_chooses_counts() -> None:
    assert count_slots(None, memory_plan(Model(RELEASED), parse_gpu("rtx-4070"), None, None), None).slots == 1


def test_a_bundle_counts_as_it_was_built(tiny_bundle: Bundle) -> None:
    found = count_slots(None, memory_plan(open_model(tiny_bundle.folder), parse_gpu("t4"), None, None), None)
    assert found.slots == 256 and "in fp32, 96 steps" in found.reason


def test_measured_frames_limit_the_slots(tmp_path: Path) -> None:
    """70 ms: a frame waits up to 10 ms for others, and the next one comes after 80 ms. Every length of context counts."""
    path = report(
        tmp_path / "stages.json", (4, 0, 20), (8, 0, 40), (16, 0, 69), (4, 3000, 30), (8, 3000, 55), (16, 3000, 71)
    )
    found = count_slots(None, memory_plan(Model(RELEASED), parse_gpu("h100"), "int4", None), path)
    assert found.slots == 8 and not found.notes
    assert "measured on a test GPU: 55 ms (p99) with 8" in found.reason


def test_memory_limits_a_fast_gpu(tmp_path: Path) -> None:
    found = count_slots(
        None,
        memory_plan(Model(RELEASED), parse_gpu("l4"), "int4", None),
        report(tmp_path / "s.json", (4, 0, 9), (64, 0, 30)),
    )
    assert found.slots == 10 and "memory" in found.reason


def test_numbers_above_a_late_one_do_not_count(tmp_path: Path) -> None:
    assert slots_in_time(report(tmp_path / "s.json", (1, 0, 10), (2, 0, 90), (4, 0, 60))).slots == 1


def test_given_slots_are_compared_with_the_measurement_and_with_memory(tmp_path: Path) -> None:
    path = report(tmp_path / "s.json", (4, 0, 20), (8, 0, 75))
    (note,) = count_slots(8, None, path).notes
    assert "--slots 8 is more than the measured frames allow: 4" in note
    assert not count_slots(4, None, path).notes
    with pytest.raises(GpuError, match=r"The rest holds 10 slots of 1.6 GB, not 32"):
        count_slots(32, memory_plan(Model(RELEASED), parse_gpu("l4"), "int4", None), None)


@pytest.mark.parametrize("gpu, precision, words", [("t4", "fp16", "holds 0 slots"), ("t4", "int4", "cannot run")])
def test_a_gpu_that_holds_no_conversation_is_refused(gpu: str, precision: str, words: str) -> None:
    with pytest.raises(GpuError, match=words):
        count_slots(None, memory_plan(Model(RELEASED), parse_gpu(gpu), precision, None), None)


def test_frames_that_are_all_late_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(GpuError, match="not even one conversation is in time"):
        slots_in_time(report(tmp_path / "s.json", (1, 0, 90), (2, 0, 95)))


@pytest.mark.parametrize(
    "text", [None, "", "{}", "[]", '{"rows": []}', '{"rows": [{"stage": "frame"}]}', '{"rows": 3}', "\xff"]
)
def test_other_files_are_no_measurement(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "stages.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"is not a report with measured frames. Make one: pplex-export bench stages"):
        slots_in_time(path)


def test_a_gpu_without_known_memory_needs_slots() -> None:
    plan = memory_plan(Model(RELEASED), parse_gpu("sm_90"), "int4", None)
    with pytest.raises(ConfigError, match="give --slots"):
        count_slots(None, plan, None)
    assert count_slots(12, plan, None).slots == 12
