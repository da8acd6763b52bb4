"""The plan counts the slots that fit, and suggests settings that fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_graphs import write_attention

from pplex.engines.compile import compile_engine
from pplex.engines.library import layers_path
from pplex.engines.plan import RESERVE_NBYTES, MemoryPlan, plan, session_nbytes, shorter_capacity
from pplex.engines.plan_report import open_model, report_plans
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.errors import ConfigError, GpuError
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.precision import parse_precision


def released(gpu: str, precision: str, capacity: int = 3000) -> MemoryPlan:
    return plan(RELEASED, parse_precision(precision), parse_gpu(gpu), capacity)


def test_rings_are_most_of_a_session_of_the_released_model() -> None:
    nbytes = session_nbytes(RELEASED, parse_precision("fp16"), 3000)
    rings = 32 * 2 * 3000 * 4096 * 2
    assert rings < nbytes["temporal"] < rings + 500_000
    assert nbytes["mimi_encode"] + nbytes["mimi_decode"] < 17_000_000 and nbytes["depth"] < 100_000


def test_carried_state_counts_twice(tiny_bundle: Bundle) -> None:
    """Buffers of a session in the runtime: a ring is one buffer, a carried state is two."""
    spec = tiny_bundle.specs["mimi_encode"]
    sizes = {"float32": 4, "int64": 8, "bool": 1}

    def count(shape: tuple[int | str, ...]) -> int:
        total = 1
        for dim in shape[1:]:
            assert isinstance(dim, int)
            total *= dim
        return total

    expected = sum(sizes[t.dtype] * count(t.shape) for t in (*spec.inputs, *spec.outputs))
    expected += sum((1 if s.ring else 2) * sizes[s.dtype] * count(s.shape) for s in spec.state)
    assert session_nbytes(tiny_bundle.config, tiny_bundle.precision, 96)["mimi_encode"] == expected


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_slots_fill_the_memory_and_no_more(precision: str) -> None:
    one = released("rtx-4090", precision)
    assert one.slots is not None and one.gpu.memory_nbytes is not None

    def taken(slots: int) -> int:
        return RESERVE_NBYTES + one.weights_nbytes + one.scratch_nbytes + slots * one.session_nbytes

    assert taken(one.slots) <= one.gpu.memory_nbytes < taken(one.slots + 1)


def test_smaller_weights_and_shorter_rings_leave_more_slots() -> None:
    slots = [released("rtx-4090", name).slots or 0 for name in ("fp32", "fp16", "fp8", "int4")]
    assert slots == sorted(slots) and slots[0] == 0 < slots[1]
    assert (released("rtx-4090", "int4", 1500).slots or 0) >= 2 * (released("rtx-4090", "int4").slots or 0)


def test_a_precision_the_gpu_lacks_has_no_slots() -> None:
    one = released("rtx-3090", "fp8")
    assert not one.possible and one.slots == 0
    with pytest.raises(GpuError, match=r"RTX 3090 \(sm_86\) cannot run temporal=fp8, depth=fp8"):
        one.check(1)


def test_unknown_memory_refuses_no_build() -> None:
    assert released("sm_89", "fp16").slots is None
    released("sm_89", "fp16").check(1000)


@pytest.mark.parametrize(
    "gpu, precision, slots, words",
    [
        ("rtx-4090", "fp16", 8, "4 slots of 1.6 GB, not 8. What would fit: --slots 4, or --capacity 1536, or"),
        ("rtx-4090", "fp16", 8, "or --precision int8."),
        ("rtx-4080", "fp16", 8, "0 slots of 1.6 GB, not 8. What would fit: --precision int4 --slots 5."),
        ("rtx-2080-ti", "fp16", 1, "Use a GPU with more memory; to compare GPUs: pplex-export plan"),
    ],
)
def test_too_many_slots_are_refused_with_what_would_fit(gpu: str, precision: str, slots: int, words: str) -> None:
    with pytest.raises(GpuError) as caught:
        released(gpu, precision).check(slots)
    assert words in str(caught.value)


def test_suggested_settings_fit() -> None:
    released("rtx-4090", "fp16").check(4)
    released("rtx-4090", "fp16", 1536).check(8)
    released("rtx-4090", "int8").check(8)
    released("rtx-4080", "int4").check(5)


def test_suggested_capacities_are_multiples_of_a_kernels_tile() -> None:
    assert [shorter_capacity(3000, part) for part in (2, 4)] == [1536, 768]
    assert [shorter_capacity(capacity, 2) for capacity in (1024, 100)] == [512, 50]


def test_a_plan_is_printed_on_one_line() -> None:
    assert released("rtx-4090", "int4").to_text() == (
        "GeForce RTX 4090 (sm_89, tensorrt-rtx): 10 slots at 3000 steps of context; "
        "5.2 GB of weights, 1.6 GB a session, 125.4 MB of scratch"
    )
    assert "an unknown number of slots" in released("sm_89", "int4").to_text()


def test_plan_of_a_bundle_uses_its_weights_and_precision(tiny_bundle: Bundle) -> None:
    model = open_model(tiny_bundle.folder)
    assert model.precision == tiny_bundle.precision
    files = tiny_bundle.manifest["files"]
    assert model.weights_nbytes == sum(files[name]["nbytes"] for name in files if name.endswith((".onnx", ".data")))
    (row,) = report_plans(tiny_bundle.folder, ["l4"], [], [96]).to_dict()
    assert (row["weights_nbytes"], row["precision"]) == (model.weights_nbytes, tiny_bundle.precision)


def test_plan_of_a_checkpoint_uses_its_sizes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"lm": {"num_layers": 16}}))
    assert open_model(tmp_path).config == replace(RELEASED, temporal=replace(RELEASED.temporal, layers=16))


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a folder.*leave it out for the released model"):
        report_plans(tmp_path / "nowhere")


@pytest.mark.parametrize("precision, dtype", [("fp32", "float32"), ("fp16", "float16")])
@pytest.mark.parametrize("capacity", [3000, 768])
def test_planned_scratch_exceeds_that_of_the_builder(tmp_path: Path, precision: str, dtype: str, capacity: int) -> None:
    """One attention of the released model's width: it has no weights, so it is quick to build."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")
    spec = write_attention(tmp_path / "attention.onnx", dtype, masked=True)
    engine = tmp_path / "attention.engine"
    compile_engine(tmp_path / "attention.onnx", spec, capacity, parse_gpu("rtx-4090"), 8, engine)
    needed = json.loads(layers_path(engine).read_text())["scratch_nbytes"]
    bound = released("rtx-4090", precision, capacity).scratch_nbytes
    assert len(needed) == 5 and needed[0] < 1_000_000 < 0.2 * bound < needed[1] < bound
