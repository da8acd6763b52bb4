"""GPU names: the facts of each, and the errors for unknown ones."""

import pytest

from pplex.runtime.errors import GpuError
from pplex.runtime.gpus import GPUS, KNOWN_SM, RTX_SM, Gpu, parse_gpu
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import PRECISIONS, parse_precision


def here() -> Gpu | None:
    try:
        return parse_gpu("local")
    except GpuError:
        return None


@pytest.mark.parametrize("name", GPUS)
def test_names_match_their_entries(name: str) -> None:
    gpu = parse_gpu(name)
    assert gpu.name == name and gpu.sm in KNOWN_SM and gpu.memory_nbytes and set(gpu.precisions) <= set(PRECISIONS)


@pytest.mark.parametrize(
    "name, sm, kind",
    [
        ("rtx-4090", 89, "tensorrt-rtx"),
        ("rtx-pro-6000", 120, "tensorrt-rtx"),
        ("dgx-spark", 121, "tensorrt-rtx"),
        ("l4", 89, "tensorrt"),  # the architecture of an RTX 4090, but no RTX product
        ("a100", 80, "tensorrt"),
        ("h200", 90, "tensorrt"),
        ("jetson-thor", 110, "tensorrt"),
        ("sm_86", 86, "tensorrt-rtx"),
        ("sm_100", 100, "tensorrt"),
    ],
)
def test_engine_kind(name: str, sm: int, kind: str) -> None:
    assert (parse_gpu(name).sm, parse_gpu(name).kind) == (sm, kind)


def test_tensorrt_rtx_is_chosen_only_where_it_compiles() -> None:
    assert all(gpu.sm in RTX_SM for gpu in GPUS.values() if gpu.kind == "tensorrt-rtx")


def test_targets_of_tensorrt_rtx_match_the_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")
    named = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    assert {f"SM{sm}" for sm in RTX_SM} == set(named)


def test_precisions_follow_the_architecture() -> None:
    assert parse_gpu("t4").precisions == ("fp32", "fp16")
    assert parse_gpu("rtx-3090").precisions == ("fp32", "fp16", "bf16", "int8", "int4")
    assert set(parse_gpu("l4").precisions) == set(PRECISIONS)


def test_an_unsupported_precision_is_refused_with_the_supported_ones() -> None:
    parse_gpu("l4").check_precision(parse_precision("temporal=fp8,depth=int4"))
    with pytest.raises(GpuError, match=r"RTX 3090 \(sm_86\) cannot run temporal=fp8: it supports fp32, fp16, bf16"):
        parse_gpu("rtx-3090").check_precision(parse_precision("temporal=fp8,depth=int4"))
    with pytest.raises(GpuError, match=", ".join(f"{graph}=bf16" for graph in GRAPH_NAMES)):
        parse_gpu("t4").check_precision(dict.fromkeys(GRAPH_NAMES, "bf16"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("rtx-4065", r"Unknown GPU 'rtx-4065'. Known: rtx-2080-ti, .*jetson-thor\. .*sm_89 for 8\.9"),
        ("sm_70", r"cannot be built for sm_70, only for sm_75, sm_80"),
        ("sm_", r"Unknown GPU 'sm_'"),
        ("", r"Unknown GPU ''"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(text: str, words: str) -> None:
    with pytest.raises(GpuError, match=words):
        parse_gpu(text)


@pytest.mark.skipif(here() is not None, reason="this machine has a GPU")
def test_local_without_a_gpu_is_refused() -> None:
    with pytest.raises(
        GpuError, match=r"--gpu local needs cuda-bindings|no NVIDIA GPU that CUDA can use .* --gpu rtx-4090"
    ):
        parse_gpu("local")


@pytest.mark.skipif(here() is None, reason="needs a GPU")
def test_local_is_described_by_its_driver() -> None:
    gpu = here()
    assert gpu is not None and gpu.name == "local" and gpu.title and gpu.sm >= 75 and gpu.memory_nbytes
