"""Sweeps: points, the saved report, the minimum bytes of a frame, and a bundle as backend."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pplex.bench import bandwidth
from pplex.bench.engine_backend import EngineBackend
from pplex.bench.sweep import FRAME, Row, SweepOptions, moved_nbytes, sweep
from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.device import Call, host_view
from pplex.runtime.errors import GpuMemoryError, OutputError
from pplex.runtime.memory import RESERVE, WORKSPACE, fitting_slots
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import FP32, parse_precision

FRAMES = 20


@dataclass
class Clock:
    """Time advances only in calls."""

    now_ms: float = 0.0

    def mark(self) -> float:
        return self.now_ms

    def elapsed_ms(self, first: float, last: float) -> float:
        return last - first

    def synchronize(self) -> None:
        pass

    def pass_ms(self, milliseconds: float) -> None:
        self.now_ms += milliseconds


@dataclass
class Steady:
    """A backend whose stages take 1 and 2 ms a slot; `room` slots fit."""

    slots: int = 8
    room: int = 8
    title: str = "steady"
    device: Clock = field(default_factory=Clock)
    machine: Mapping[str, Any] = field(default_factory=lambda: {"device": "none"})
    figures: Mapping[str, Any] = field(default_factory=dict)
    prepared: list[tuple[int, int]] = field(default_factory=list)

    def prepare(self, slots: int, context_steps: int) -> Mapping[str, Call]:
        if slots > self.room:
            raise GpuMemoryError("The GPU has no memory left.")
        self.prepared.append((slots, context_steps))
        return {"ears": partial(self.device.pass_ms, slots), "mouth": partial(self.device.pass_ms, 2 * slots)}

    def frame(self, slots: int) -> None:
        self.device.pass_ms(3 * slots)

    def floor_ms(self, slots: int, context_steps: int) -> Mapping[str, float]:
        return {"ears": 0.5, "mouth": 0.25}

    def kernels(self, calls: Mapping[str, Call]) -> Mapping[str, int]:
        return {"ears": 7, "mouth": 5}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Steady:
    steady = Steady()
    monkeypatch.setattr("time.perf_counter", lambda: steady.device.now_ms / 1000)
    return steady


def options(*context_steps: int, out: Path | None = None) -> SweepOptions:
    return SweepOptions(8, context_steps, FRAMES, out=out)


def points(rows: tuple[Row, ...]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((row.context_steps, row.slots) for row in rows))


def test_rows_are_of_every_stage_and_the_frame(backend: Steady) -> None:
    report = sweep(replace(backend, slots=1), options(0))
    assert report.rows == (
        Row(1, 0, "ears", 1.0, 1.0, 1.0, 0.5, 7),
        Row(1, 0, "mouth", 2.0, 2.0, 2.0, 0.25, 5),
        Row(1, 0, FRAME, 3.0, 3.0, 3.0, 0.75, 12),
    )
    assert "mouth" in report.to_text()


def test_slots_double_until_a_frame_takes_too_long(backend: Steady) -> None:
    assert points(sweep(backend, options(0, 9)).rows) == [
        (0, 1),
        (0, 2),
        (0, 4),
        (0, 8),
        (9, 1),
        (9, 2),
        (9, 4),
        (9, 8),
    ]
    assert points(sweep(replace(backend, slots=6), options(0)).rows) == [(0, 1), (0, 2), (0, 4), (0, 6)]
    assert points(sweep(backend, options(0), limit_ms=5.0).rows) == [
        (0, 1),
        (0, 2),
    ]  # the report includes the point that is too slow


def test_the_report_says_where_memory_was_full(backend: Steady) -> None:
    report = sweep(replace(backend, room=2), options(0))
    assert points(report.rows) == [(0, 1), (0, 2)]
    assert report.figures["0 context steps, 4 slots"] == "no room: The GPU has no memory left."


def test_a_report_is_saved_and_resumed(backend: Steady, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    whole = sweep(backend, options(0, 5))
    kept = sweep(backend, options(0, out=out))
    assert json.loads(out.read_text())["rows"] == json.loads(json.dumps(kept.to_dict()))["rows"]
    later = replace(backend, prepared=[])
    assert sweep(later, options(0, 5, out=out)).rows == whole.rows
    measured = [prepared for prepared in later.prepared if prepared[1] == 5]
    assert [slots for slots, _ in measured] == [1, 2, 4, 8] and (1, 0) not in later.prepared[:1]


@pytest.mark.parametrize("text", ["", "[]", '{"title": "steady"}'])
def test_another_file_is_not_overwritten(backend: Steady, tmp_path: Path, text: str) -> None:
    out = tmp_path / "notes.json"
    out.write_text(text)
    with pytest.raises(OutputError, match=r"notes.json is not a report of this benchmark"):
        sweep(backend, options(0, out=out))
    sweep(backend, options(0, out=tmp_path / "report.json"))
    with pytest.raises(OutputError, match=r"is a report of steady, measured with other settings"):
        sweep(backend, replace(options(0, out=tmp_path / "report.json"), frames=FRAMES + 1))
    assert out.read_text() == text


def test_a_frame_reads_weights_once_and_rings_once_per_session() -> None:
    precision = parse_precision("bf16")
    empty, full = moved_nbytes(RELEASED, precision, 3, 0), moved_nbytes(RELEASED, precision, 3, 9000)
    weights = weights_nbytes(RELEASED, precision)
    assert empty["mimi_decode"] == weights["mimi_decode"]
    assert empty["temporal"] < weights["temporal"]  # embeddings are read by rows
    assert full["depth"] == empty["depth"]
    assert full["temporal"] - empty["temporal"] == 3 * 2 * 32 * 4096 * 3000 * 2  # k and v, layers, width, ring, bytes
    assert full["mimi_encode"] - empty["mimi_encode"] == 3 * 2 * 8 * 512 * 256 * 4


def test_a_mix_counts_its_own_forms() -> None:
    precision = {**FP32, "temporal": "mixed", "depth": "mixed"}
    forms = {"temporal": {"layers.3.attention.out_proj": "int8/32"}}
    usual, mixed = moved_nbytes(RELEASED, precision, 1, 0), moved_nbytes(RELEASED, precision, 1, 0, forms)
    assert mixed["temporal"] - usual["temporal"] == 4096 * 4096 // 2 and mixed["depth"] == usual["depth"]


def test_slots_fit_beside_the_weights() -> None:
    free = 10 * 7 + RESERVE + WORKSPACE + 5
    assert [fitting_slots(free, 7, 5, wanted) for wanted in (3, 10, 64)] == [3, 10, 10]
    assert fitting_slots(0, 7, 5, 64) == 1  # the load refuses it, with its reasons
    assert fitting_slots(None, 7, 5, 64) == 64


def test_rings_hold_noise_up_to_the_context_length(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "NBYTES", 1 << 20)
    backend = EngineBackend(tiny_bundle, 3, "cpu")
    backend.prepare(2, 40)
    for ring in backend._stages.engines["temporal"].state.values():
        values = host_view(ring)
        assert (np.abs(values[:2, :, :40]) > 0).mean() > 0.99 and not values[2].any()
    assert backend._stages.position.tolist() == [40, 40, 0]


def test_bench_stages_runs_on_a_bundle(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "NBYTES", 1 << 24)
    options = ["--slots", "2", "--context-steps", "0", "--context-steps", "200", "--frames", "5", "--device", "cpu"]
    arguments = ["bench", "stages", str(tiny_bundle.folder), *options, "--out", str(tmp_path / "out.json"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["slots"], row["context_steps"], row["stage"]) for row in rows] == [
        (slots, context_steps, stage)
        for context_steps in (0, 200)
        for slots in (1, 2)
        for stage in (*GRAPH_NAMES, FRAME)
    ]
    refused = CliRunner().invoke(
        main, ["bench", "stages", str(tiny_bundle.folder), "--out", str(tmp_path / "no" / "x")]
    )
    assert refused.exit_code != 0 and "does not exist" in refused.output + str(refused.exception)
    assert all(0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["floor_ms"] > 0 for row in rows)
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
