"""A fault is found and named by graph and layer; a correct graph has no faults, in any precision."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from broken import (
    Fault,
    broken,
    changed,
    halves_rotated,
    ring_off_by_one,
    swapped,
    window_longer_by,
    without_lengths,
)
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.export.exporter import export_graph
from pplex.runtime.backend import host_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import HostDevice
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import PRECISIONS
from pplex.runtime.tolerances import tolerances
from pplex.validate.report.schema import Section
from pplex.validate.sections.graphs import graph_section

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
PIECES = unheard_pieces(CHECKPOINT.config, 2)
CODES, PCM = token_history(CHECKPOINT, PIECES, 100), PIECES.reshape(-1, 1920)


def section(bundle: Bundle) -> Section:
    return graph_section(bundle, bundle, CHECKPOINT, CODES, PCM[:40], "cpu", 1)


def named(bundle: Bundle) -> list[tuple[str, str]]:
    return [(measure.name, measure.where) for measure in section(bundle).failures]


def test_a_correct_bundle_passes_layer_by_layer(tiny_bundle: Bundle) -> None:
    found = section(tiny_bundle)
    layer_errors = [m for m in found.measures if m.name.endswith("layer_error")]
    assert [m.name for m in layer_errors] == [f"graphs.{graph}.layer_error" for graph in GRAPH_NAMES]
    assert not found.failures and all(0 < (m.value or 0) < 1e-5 for m in layer_errors)
    layers = {table.title.partition(",")[0]: [row[0] for row in table.rows] for table in found.tables}
    temporal = [f"layers.{i}.{half}" for i in range(3) for half in ("attention", "gating")]
    assert layers["temporal"] == ["embedding", *temporal, "out_norm", "text_linear"]
    assert len(layers["depth"]) == 8 * (1 + 2 * 2 + 1)
    assert layers["mimi_encode"][-8:] == [f"quantizer.codebooks.{i}" for i in range(8)]
    assert len(layers["mimi_encode"]) > 30 and layers["mimi_decode"][-1] == "pcm"


OUT = "layers.{}.attention.out_proj.weight"
FAULTS: dict[str, tuple[str, Fault, str]] = {
    "swapped weights": ("temporal", swapped(OUT.format(1), OUT.format(2)), "layers.1.attention"),
    "dropped lengths": ("temporal", without_lengths(1), "layers.1.attention"),
    "ring off by one": ("temporal", ring_off_by_one(2), "layers.2.attention"),
    "window of one more": ("temporal", window_longer_by(1), "layers.0.attention"),
    "wrong RoPE pairing": ("temporal", halves_rotated(1), "layers.1.attention"),
    "permuted embedding": ("temporal", changed("audio_emb", lambda x: np.roll(x, 1, 0)), "embedding"),
    "text head": ("temporal", changed("text_linear.weight", lambda x: x[:, ::-1]), "text_linear"),
    "depth step's table": ("depth", changed("steps.4.emb", lambda x: np.roll(x, 1, 0)), "steps.4.input"),
    "depth step's gate": (
        "depth",
        changed("steps.6.gating.1.linear_in.weight", lambda x: np.roll(x, x.shape[1] // 2, 1)),
        "steps.6.layers.1.gating",
    ),
    "permuted codebook, heard": (
        "mimi_encode",
        changed("quantizer.codebooks.3", lambda x: np.roll(x, 1, 0)),
        "quantizer.codebooks.3",
    ),
    "permuted codebook, spoken": (
        "mimi_decode",
        swapped("quantizer.codebooks.5", "quantizer.codebooks.2"),
        "quantizer.codebooks.2",
    ),
    "convolution": (
        "mimi_decode",
        changed("seanet.stages.1.residual.convs.0.weight", lambda x: x[..., ::-1]),
        "seanet.stages.1.residual.convs.0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_its_graph_and_layer(tiny_bundle: Bundle, tmp_path: Path, fault: str) -> None:
    graph, plant, layer = FAULTS[fault]
    first, *others = named(broken(tiny_bundle, graph, plant, tmp_path))
    assert first == (f"graphs.{graph}.layer_error", layer)
    assert all(name.startswith(f"graphs.{graph}.") for name, _ in others)
    assert ("graphs.temporal.window" in dict(others)) == (fault in ("dropped lengths", "window of one more"))


@pytest.mark.parametrize("graph, layer, weight", [
    ("temporal", "layers.1.gating", "layers.1.gating.linear_out.weight"),
    ("depth", "steps.3.layers.0.attention", "steps.3.in_proj.0.weight"),
])  # fmt: skip
def test_a_doubled_scale_is_not_rounding(
    tiny_bundle: Bundle, tmp_path: Path, graph: str, layer: str, weight: str
) -> None:
    made, planted = tmp_path / "made", tmp_path / "planted"
    made.mkdir(), planted.mkdir()
    for path in tiny_bundle.folder.iterdir():
        if not path.name.startswith(f"{graph}."):
            shutil.copy(path, made)
    precision = {**tiny_bundle.precision, graph: "int8"}
    export_graph(graph, CHECKPOINT, tiny_bundle.config, made, precision)
    sound = replace(tiny_bundle, folder=made, precision=precision)
    assert named(sound) == []
    doubled = broken(sound, graph, changed(f"{weight}.scale", lambda x: 2 * x), planted)
    assert named(doubled) == [(f"graphs.{graph}.layer_error", layer), (f"graphs.{graph}.channel_error", layer)]


def test_one_wrong_column_among_many_is_found(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Float32 shows every error, so check the figure itself: a doubled column gives 1."""

    def double_one(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return x * np.where(np.arange(x.shape[1]) == 5, 2, 1).astype(np.float32)

    found = section(broken(tiny_bundle, "temporal", changed("layers.2.gating.linear_out.weight", double_one), tmp_path))
    channel = next(m for m in found.measures if m.name == "graphs.temporal.channel_error")
    assert channel.where == "layers.2.gating" and 0.3 < (channel.value or 0) <= 1.001
    limits = [tolerances("temporal", precision)["channel_error"] for precision in PRECISIONS]
    assert max(limits) < 1


def test_infinite_values_are_an_infinite_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    fault = changed("layers.0.attention.out_proj.weight", lambda x: x * np.float32(np.nan))
    failure = section(broken(tiny_bundle, "temporal", fault, tmp_path)).failures[0]
    assert failure.where == "layers.0.attention" and failure.value == float("inf")


def test_outputs_of_a_compiled_engine_are_compared(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Only its kind in the manifest marks it as compiled: no compiled engine runs here."""
    fault = changed("steps.6.gating.1.linear_in.weight", lambda x: np.roll(x, x.shape[1] // 2, 1))
    errors = {}
    for name, bundle in (("sound", tiny_bundle), ("faulty", broken(tiny_bundle, "depth", fault, tmp_path))):
        engines = {graph: {**entry, "kind": "tensorrt"} for graph, entry in bundle.manifest["engines"].items()}
        compiled = replace(bundle, manifest={**bundle.manifest, "engines": engines})
        found = graph_section(compiled, compiled, CHECKPOINT, CODES, PCM[:40], host_backend(HostDevice(), 1), 1)
        outputs = [f"graphs.{graph}.output_error" for graph in GRAPH_NAMES]
        assert [m.name for m in found.measures] == [*outputs, "graphs.temporal.window"]
        assert "Compiled engines give only their outputs" in found.notes[0]
        errors[name] = {m.name: m for m in found.measures}
    assert all((m.value or 0) < 1e-5 and m.passed for m in errors["sound"].values())
    worst = errors["faulty"]["graphs.depth.output_error"]
    assert (worst.value or 0) > 0.1 and worst.where in ("steps.6.output", "steps.7.output")
    assert (errors["faulty"]["graphs.mimi_decode.output_error"].value or 0) < 1e-5
