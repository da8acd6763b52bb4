"""Choice of device and library, and errors that say what is wrong and what to do."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from devices import QueueDevice
from gpu import has_gpu
from tensorrt_stand_in import VERSION, stand_in, write_plans

from pplex.runtime.backend import (
    check_engines,
    choose_backend,
    engines_nbytes,
    gpu_loader,
    graphs_run_on_processor,
)
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import HostDevice
from pplex.runtime.errors import BundleError, EngineError, GpuError, GpuMemoryError, LibraryError, SlotError
from pplex.runtime.gpus import FoundGpu
from pplex.runtime.memory import RESERVE, slot_nbytes
from pplex.runtime.session import Runtime

ADA = FoundGpu("NVIDIA GeForce RTX 4090", 89, 24 * 10**9)


@pytest.fixture
def compiled(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The tiny bundle with stand-in plans for sm_89 and four slots."""
    for path in tiny_bundle.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return replace(
        tiny_bundle,
        folder=tmp_path,
        manifest={**tiny_bundle.manifest, "engines": write_plans(tiny_bundle, tmp_path, slots=4)},
    )


@pytest.fixture
def device() -> QueueDevice:
    return QueueDevice()


@pytest.fixture
def library(compiled: Bundle, device: QueueDevice, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = stand_in(compiled, device)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


def changed(bundle: Bundle, *graphs: str, **values: Any) -> Bundle:
    """The bundle with changed manifest entries for some engines, or for all."""
    engines = {
        name: {**entry, **(values if name in (graphs or bundle.specs) else {})}
        for name, entry in bundle.manifest["engines"].items()
    }
    return replace(bundle, manifest={**bundle.manifest, "engines": engines})


def load(bundle: Bundle, device: QueueDevice, slots: int = 2, spare: int = 0) -> None:
    gpu_loader(device)(bundle, slots, spare)  # type: ignore[arg-type]


no_gpu = pytest.mark.skipif(has_gpu(), reason="a GPU answers here")


def test_graphs_run_on_the_processor_without_a_gpu(tiny_bundle: Bundle) -> None:
    for asked in (None, "cpu"):
        assert isinstance(choose_backend(tiny_bundle, asked, threads=1).device, HostDevice)


def test_cuda_needs_an_onnx_runtime_built_for_gpus(tiny_bundle: Bundle) -> None:
    with pytest.raises(LibraryError, match=r"was not built for GPUs: .* pip install 'pplex-export\[cuda\]'"):
        choose_backend(tiny_bundle, "cuda", threads=1)


@no_gpu
def test_onnx_runtime_for_gpus_falls_back_without_a_gpu(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pplex.runtime.backend.has_cuda_provider", lambda: True)
    assert isinstance(choose_backend(tiny_bundle, None, threads=1).device, HostDevice)
    assert graphs_run_on_processor(None) and graphs_run_on_processor("cpu")
    with pytest.raises(GpuError, match="No NVIDIA GPU can be used"):
        choose_backend(tiny_bundle, "cuda", threads=1)


@pytest.mark.parametrize("sm", [61, 100])
def test_a_gpu_without_kernels_in_onnx_runtime_is_refused_unless_named(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, sm: int
) -> None:
    device = QueueDevice()
    device.gpu = FoundGpu("Some GPU", sm, 8 << 30)
    monkeypatch.setattr("pplex.runtime.backend.has_cuda_provider", lambda: True)
    monkeypatch.setattr("pplex.runtime.backend.CudaDevice", lambda: device)
    with pytest.raises(
        GpuError, match=rf"no kernels for Some GPU \(sm_{sm}\).* --gpu local .*--device cpu.*--device cuda"
    ):
        choose_backend(tiny_bundle, None, threads=1)
    assert choose_backend(tiny_bundle, "cuda", threads=1).device is device


def test_an_unknown_device_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="Unknown device 'tpu': choose cpu or cuda"):
        choose_backend(tiny_bundle, "tpu", threads=1)


@no_gpu
def test_compiled_engines_are_refused_without_a_gpu(compiled: Bundle) -> None:
    with pytest.raises(GpuError, match=r"No NVIDIA GPU can be used .* nvidia-smi"):
        Runtime(compiled)


def test_compiled_engines_are_refused_on_the_processor(compiled: Bundle) -> None:
    mixed = changed(compiled, "mimi_encode", kind="onnxruntime")
    with pytest.raises(EngineError, match=r"^temporal, depth, mimi_decode: compiled for a GPU, .* without --gpu"):
        choose_backend(mixed, "cpu", threads=1)


def test_engines_of_an_unknown_kind_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"does not know: depth \(openvino\)\."):
        choose_backend(changed(tiny_bundle, "depth", kind="openvino"), None, threads=1)


def test_bf16_is_refused_on_the_processor(tiny_bundle: Bundle) -> None:
    bundle = replace(tiny_bundle, precision={**tiny_bundle.precision, "temporal": "bf16"})
    with pytest.raises(EngineError, match=r"^temporal is in bf16, .* on a GPU, or rebuild it: pplex-export build "):
        Runtime(bundle, 1, device="cpu")


def test_every_engine_of_another_gpu_is_named(compiled: Bundle) -> None:
    bundle = changed(compiled, "temporal", "depth", sm=120, gpu="rtx-5090")
    with pytest.raises(GpuError) as refusal:
        check_engines(bundle.manifest["engines"], ADA, {"tensorrt-rtx": VERSION}, slots=1)
    assert str(refusal.value).splitlines() == [
        f"{graph} was built for sm_120 (rtx-5090) by tensorrt-rtx {VERSION}; this GPU ({ADA.name}) is sm_89."
        for graph in ("temporal", "depth")
    ] + ["Rebuild it here: pplex-export build CHECKPOINT --gpu local --out BUNDLE"]


def test_engines_of_another_version_are_named(compiled: Bundle) -> None:
    bundle = changed(compiled, "depth", made_with="tensorrt-rtx 1.6.0.2")
    with pytest.raises(LibraryError) as refusal:
        check_engines(bundle.manifest["engines"], ADA, {"tensorrt-rtx": VERSION}, slots=1)
    message = str(refusal.value)
    assert message.startswith(f"depth was built by tensorrt-rtx 1.6.0.2; {VERSION} is installed.\n")
    assert "pip install tensorrt-rtx-cu13==1.6.0.2" in message and "temporal" not in message


def test_more_slots_than_the_engines_allow_are_refused(compiled: Bundle) -> None:
    bundle = changed(compiled, "temporal", slots=2)
    with pytest.raises(SlotError, match=r"^3 slots are more .*: temporal takes 2\. .* --slots 3$"):
        check_engines(bundle.manifest["engines"], ADA, {"tensorrt-rtx": VERSION}, slots=3)


def test_onnx_graphs_run_on_any_gpu(tiny_bundle: Bundle) -> None:
    check_engines(tiny_bundle.manifest["engines"], ADA, {}, slots=1000)


def test_a_missing_library_is_reported(compiled: Bundle, device: QueueDevice) -> None:
    bundle = changed(compiled, "depth", kind="tensorrt")
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(LibraryError, match=r"need tensorrt, .* pip install 'pplex-export\[tensorrt\]'"):
        load(bundle, device)


def test_checks_come_before_anything_is_loaded(compiled: Bundle, device: QueueDevice, library: Any) -> None:
    library.Runtime = None
    free = device.free
    for bundle, slots, error in (
        (changed(compiled, sm=90), 1, GpuError),
        (changed(compiled, made_with="tensorrt-rtx 1"), 1, LibraryError),
        (compiled, 5, SlotError),
    ):
        with pytest.raises(error):
            load(bundle, device, slots)
    device.free = free = 1 << 20
    with pytest.raises(GpuMemoryError, match="2 slots of 96 steps"):
        load(compiled, device)
    assert device.free == free


def test_spare_slots_count_as_memory(compiled: Bundle, device: QueueDevice, library: Any) -> None:
    per_slot = slot_nbytes(compiled.specs.values(), compiled.config.temporal.capacity)
    device.free = engines_nbytes(compiled.manifest) + 2 * per_slot + per_slot // 2 + RESERVE
    load(compiled, device, 2)
    with pytest.raises(GpuMemoryError, match="so 1 slots fit"):
        load(compiled, device, 2, spare=1)


def test_scratch_memory_counts(compiled: Bundle, device: QueueDevice, library: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("tensorrt_stand_in.SCRATCH_NBYTES", 1 << 50)
    with pytest.raises(GpuMemoryError, match="2 slots of 96 steps"):
        load(compiled, device)


def test_a_damaged_plan_is_refused_with_the_message_of_the_library(
    compiled: Bundle, device: QueueDevice, library: Any
) -> None:
    (compiled.folder / "depth.engine").write_text("damaged")
    with pytest.raises(
        EngineError, match=r"cannot load .*depth\.engine: this is not a plan\. Rebuild it here: pplex-ex"
    ):
        load(compiled, device)


def test_a_plan_of_another_graph_is_refused(compiled: Bundle, device: QueueDevice, library: Any) -> None:
    (compiled.folder / "depth.engine").write_bytes((compiled.folder / "mimi_encode.engine").read_bytes())
    with pytest.raises(
        EngineError, match=r"inputs and outputs of depth\.engine are not those of the graph depth: active, "
    ):
        load(compiled, device)


def test_engine_bytes_equal_their_file_sizes(tiny_bundle: Bundle, compiled: Bundle) -> None:
    graphs = [p.stat().st_size for p in tiny_bundle.folder.iterdir() if p.suffix in (".onnx", ".data")]
    assert engines_nbytes(tiny_bundle.manifest) == sum(graphs)
    files = {f"{graph}.engine": {"nbytes": 100, "sha256": ""} for graph in compiled.specs}
    assert engines_nbytes({**compiled.manifest, "files": {**tiny_bundle.manifest["files"], **files}}) == 400
