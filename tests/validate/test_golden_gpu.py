"""The golden suite on a GPU, by every library that is installed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import TINY
from gpu import gpu_device

from pplex.engines.compile import compile_engine, engine_entry
from pplex.runtime.backend import Backend, gpu_loader
from pplex.runtime.bundle import Bundle
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.ort import has_cuda_provider
from pplex.validate.golden import check_golden

pytestmark = pytest.mark.gpu

SLOTS = 4


def on_onnx_runtime(bundle: Bundle, folder: Path, sm: int) -> Bundle:
    if not has_cuda_provider():
        pytest.skip("ONNX Runtime was not built for GPUs: pip install 'pplex-export[cuda]'")
    return bundle


def on_tensorrt_rtx(bundle: Bundle, folder: Path, sm: int) -> Bundle:
    """The bundle with engines that are built here, for this GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'pplex-export[rtx]'")
    if not hasattr(trt.ComputeCapability, f"SM{sm}"):
        pytest.skip(f"TensorRT-RTX {trt.__version__} does not know sm_{sm}")
    shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
    entries, gpu = {}, parse_gpu(f"sm_{sm}")
    for name, spec in bundle.specs.items():
        engine = folder / f"{name}.engine"
        compile_engine(bundle.graph_path(name), spec, bundle.config.temporal.capacity, gpu, SLOTS, engine)
        entries[name] = engine_entry(engine, gpu, SLOTS)
    return replace(bundle, folder=folder, manifest={**bundle.manifest, "engines": entries})


@pytest.mark.parametrize("library", [on_onnx_runtime, on_tensorrt_rtx])
def test_golden_suite(tiny_bundle: Bundle, tmp_path: Path, library: Any) -> None:
    device = gpu_device()
    bundle = library(tiny_bundle, tmp_path, device.gpu.sm)
    checks = list(check_golden(bundle, TINY, Backend(device, gpu_loader(device))))
    assert len(checks) == 14 and all(check.passed for check in checks), checks
