"""The time of a step compared with reading its weights, and how it grows."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pplex.bench import bandwidth
from pplex.bench.bandwidth import Bandwidth
from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.kv_cache import ring_lengths
from pplex.runtime.parameters import step_nbytes
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS
from pplex.runtime.precision import parse_precision


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "NBYTES", 1 << 24)


def report(*arguments: str) -> dict[str, dict[str, float]]:
    result = CliRunner().invoke(main, ["bench", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, dict[str, float]] = json.loads(result.stdout)
    return found


def test_weights_of_a_step_are_all_but_the_embeddings() -> None:
    """The released temporal transformer: 32 layers and a head, in half bytes with a float16 scale for 32 of them."""
    layer = 4096 * (3 * 4096 + 4096 + 2 * 11264) + 11264 * 4096
    norms = (2 * 32 + 1) * 4096 * 4
    head = 4096 * 32000
    expected = 32 * layer * (1 / 2 + 2 / 32) + head * (1 + 2 / 32) + norms
    assert step_nbytes(RELEASED, parse_precision("int4"))["temporal"] == expected
    assert step_nbytes(RELEASED, parse_precision("fp16"))["temporal"] == 2 * (32 * layer + head) + norms


def test_bandwidth_is_bytes_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert Bandwidth(2).measure() == 2 * bandwidth.NBYTES


def test_floor_compares_both_graphs_with_memory_and_torch(tiny_bundle: Bundle) -> None:
    found = report("floor", str(tiny_bundle.folder), "--steps", "5", "--torch-layers", "1")
    timings, figures = found["timings"], found["figures"]
    layers = tiny_bundle.config.temporal.layers
    assert set(timings) == {
        *LANGUAGE_GRAPHS,
        f"temporal, torch bfloat16, 1 layers of {layers}, scaled",
        "depth, torch bfloat16",
    }
    for graph in LANGUAGE_GRAPHS:
        nbytes = step_nbytes(tiny_bundle.config, tiny_bundle.precision)[graph]
        floor_ms = nbytes / figures["read GB/s"] / 1e6
        median_ms = timings[graph]["median_ms"]  # type: ignore[index]
        assert figures[f"{graph}: step time / time to read the weights"] == pytest.approx(median_ms / floor_ms, rel=0.2)
        assert figures[f"{graph}: torch time / our time"] > 0
    without = report("floor", str(tiny_bundle.folder), "--steps", "5", "--torch-layers", "0")
    assert set(without["timings"]) == set(LANGUAGE_GRAPHS)


def test_scaling_measures_slots_rings_and_threads(tiny_bundle: Bundle, tmp_path: Path) -> None:
    plots = tmp_path / "new" / "plots"
    found = report("scaling", str(tiny_bundle.folder), "--slots", "3", "--steps", "3", "--plot", str(plots))
    curves, timings, figures = found["curves"], found["timings"], found["figures"]
    assert {graph: [size for size, _ in curve] for graph, curve in curves["slots"].items()} == {  # type: ignore[attr-defined]
        graph: [1, 2, 3] for graph in GRAPH_NAMES
    }
    sizes, milliseconds = np.array(curves["ring"]["temporal"]).T  # type: ignore[index]
    assert sizes.tolist() == ring_lengths(tiny_bundle.config.temporal.capacity)
    assert milliseconds[-1] == timings[f"temporal, {int(sizes[-1])} entries of the ring"]["median_ms"]  # type: ignore[index]
    alone, _, three = (milliseconds for _, milliseconds in curves["slots"]["depth"])  # type: ignore[index]
    assert figures["depth: 3 slots / 1 slot"] == pytest.approx(three / alone, abs=0.01)
    pictures = {path.name: path.read_text() for path in plots.iterdir()}
    assert set(pictures) == {"slots.svg", "ring.svg", "threads.svg"}
    assert all(picture.startswith("<svg") for picture in pictures.values()) and "mimi_decode" in pictures["slots.svg"]


def test_profile_names_operators_and_their_number(tiny_bundle: Bundle) -> None:
    timings = report("frame", str(tiny_bundle.folder), "--profile", "--frames", "20")["timings"]
    layers = tiny_bundle.config.temporal.layers
    assert set(GRAPH_NAMES) <= set(timings)
    assert f"  temporal: MatMul x {4 * layers + 1}" in timings
    for graph in GRAPH_NAMES:
        operators = [row["median_ms"] for name, row in timings.items() if name.startswith(f"  {graph}:")]  # type: ignore[index]
        assert 0 < sum(operators) < 1.5 * timings[graph]["median_ms"]  # type: ignore[index]


def test_operators_of_a_gpu_are_refused(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(main, ["bench", "frame", str(tiny_bundle.folder), "--profile", "--device", "cuda"])
    assert result.exit_code == 2 and "on the processor only" in result.output
