"""Variants of a graph, timed in turns: the settings reach ONNX Runtime, and results are resumed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_pairs
import gpu_probes
import numpy as np
import onnxruntime
import pytest
from gpu_run import GpuRun
from gpu_steps import pairs
from gpu_variants import as_stored, frame_input, session_settings

from pplex.export import layers
from pplex.runtime.bundle import Bundle
from pplex.runtime.engine import fixed_shape
from pplex.runtime.graphs import graph_specs


def asked(bundle: Bundle, out: Path, *words: str) -> Any:
    sides = ("--variant", "a", bundle.folder, "--variant", "b", bundle.folder, "session.intra_op.allow_spinning=0")
    rest = ("--slots", 2, "--slots", 1, "--seconds", 0.01, "--device", "cpu", "--out", out)
    return gpu_pairs.arguments([str(word) for word in (*sides, *rest, *words)])


def test_variants_take_turns_at_every_point(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out, capacity = tmp_path / "out.json", tiny_bundle.config.temporal.capacity
    gpu_pairs.run(asked(tiny_bundle, out, "--graph", "temporal", "--graph", "mimi_decode", "--contexts", "2"))
    result = json.loads(out.read_text())
    found = [(row["slots"], row["context_steps"], row["graph"], row["variant"]) for row in result["pairs"]]
    contexts, graphs = (capacity // 10, capacity), ("temporal", "mimi_decode")
    assert found == [(n, steps, graph, name) for n in (1, 2) for steps in contexts for graph in graphs for name in "ab"]
    assert all(row["p50_ms"] > 0 and row["calls"] >= gpu_pairs.CALLS for row in result["pairs"])
    assert result["variants"]["b"]["settings"] == {"session.intra_op.allow_spinning": "0"}
    assert {"load_s", "first_calls_s", "kernels"} <= result["variants"]["a"].keys()


def test_measured_points_are_not_measured_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    first = gpu_pairs.run(asked(tiny_bundle, out, "--graph", "depth"))["pairs"]
    kept = first[:2]
    out.write_text(json.dumps({"pairs": kept}))
    again = gpu_pairs.run(asked(tiny_bundle, out, "--graph", "depth"))["pairs"]
    assert again[:2] == kept and len(again) == len(first)


def test_settings_reach_the_session_and_the_cuda_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **named: made.append((args, named)))
    options = onnxruntime.SessionOptions()
    settings = {"ep.cuda.fpa_intb_gemm": "1", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1"}
    providers = [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"}), "CPUExecutionProvider"]
    with session_settings(settings):
        onnxruntime.InferenceSession("model", options, providers=providers, disabled_optimizers=None)
    onnxruntime.InferenceSession("model", options, providers=providers)
    (_, changed), (_, unchanged) = made
    assert options.get_session_config_entry("ep.cuda.fpa_intb_gemm") == "1"
    of_provider = {"device_id": "0", "use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}
    assert changed["providers"] == [("CUDAExecutionProvider", of_provider), "CPUExecutionProvider"]
    assert unchanged["providers"] == providers


def test_the_pairs_change_one_thing_each(tmp_path: Path) -> None:
    steps = {step.name: step for step in pairs(GpuRun(tmp_path, "cuda", "full"))}
    fpa = gpu_pairs.arguments(steps["ab.fpa_intb"].command[3:])
    assert [variant[2:] for variant in fpa.variant] == [["ep.cuda.fpa_intb_gemm=0"], ["ep.cuda.fpa_intb_gemm=1"]]
    assert (fpa.variant[0][1], sorted(fpa.slots)) == (fpa.variant[1][1], [1, 8, 32])
    mask = gpu_pairs.arguments(steps["ab.mask"].command[3:])
    assert [variant[0] for variant in mask.variant] == ["mask", "lengths"] and sorted(mask.slots) == [1, 8, 64]
    assert "--for-engines" in steps["build.wide-mask"].command


def test_every_input_of_a_frame_is_valid(tiny_bundle: Bundle) -> None:
    """An invalid code or candidate would read outside a table, which a GPU does not report."""
    config, noise = tiny_bundle.config, np.random.default_rng(0)
    for spec in graph_specs(config).values():
        for tensor in spec.inputs:
            shape = fixed_shape(tensor.shape, {"B": 3, "T": 1})
            values = frame_input(tensor, shape, 40, config, noise)
            assert (values.shape, str(values.dtype)) == (shape, tensor.dtype), tensor.name
            if tensor.name in ("codes", "text_token"):
                assert values.min() >= 0 and values.max() < config.audio_card
            if tensor.name.startswith("forced"):
                assert (values == -1).all()
            if tensor.name == "noise_stride":
                assert (values % 2 == 1).all() and values.max() < config.noise_entries
            if tensor.name == "noise":
                assert values.min() > 0


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    stored = as_stored(np.array([1.0, -2.5], np.float32), "bfloat16")
    assert stored.dtype == np.uint16 and stored.tolist() == [0x3F80, 0xC020]
    assert as_stored(np.array([1.0], np.float32), "float16").dtype == np.float16


def test_graphs_can_be_built_with_other_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_CANDIDATES", layers.MAX_CANDIDATES)  # restored at the end
    given: list[SimpleNamespace] = []
    seen = lambda words: given.append(SimpleNamespace(words=words, candidates=layers.MAX_CANDIDATES))  # noqa: E731
    monkeypatch.setattr("pplex.cli.main", seen)
    gpu_probes.candidates("256", "build", "here")
    assert given == [SimpleNamespace(words=("build", "here"), candidates=256)]
