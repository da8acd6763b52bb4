"""Errors for engines that cannot be built here: the needed library and machine, and what would work."""

import importlib.util
import sys
from typing import Any

import pytest

from pplex.engines.library import open_library
from pplex.runtime.errors import BuildError, GpuError
from pplex.runtime.gpus import parse_gpu


def has_gpu() -> bool:
    try:
        parse_gpu("local")
    except GpuError:
        return False
    return True


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
@pytest.mark.parametrize(
    "gpu, words",
    [
        (
            "h100",
            r"H100 are built by TensorRT, .* pip install 'pplex-export\[export,tensorrt\]'\. Or leave out --gpu: ONNX",
        ),
        ("b200", r"B200 are built by TensorRT, .* pip install 'pplex-export\[export,tensorrt\]'\.$"),
        (
            "l4",
            r"L4 are built by TensorRT, .* Or --gpu sm_89: a TensorRT-RTX engine .* not support on L4\. Or leave out",
        ),
    ],
)
def test_a_missing_library_is_reported(gpu: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        open_library(parse_gpu(gpu))


def test_missing_tensorrt_rtx_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BuildError, match=r"RTX 4090 are built by TensorRT-RTX, .*'pplex-export\[export,rtx\]'"):
        open_library(parse_gpu("rtx-4090"))


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_tensorrt_without_its_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # the same API
    with pytest.raises(
        BuildError, match=r"TensorRT builds on the GPU it builds for: run this on a machine with H100\. Or"
    ):
        open_library(parse_gpu("h100"))


def test_a_library_names_itself_with_its_version() -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")
    library = open_library(parse_gpu("rtx-4090"))
    assert (library.made_with, str(library)) == (f"tensorrt-rtx {trt.__version__}", f"TensorRT-RTX {trt.__version__}")
