"""Chooses the device and libraries for a bundle, checks them, and loads the executors: called by `runtime.stages`."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.kernels import LAYOUT
from pplex.runtime.bundle import CACHE_SUFFIX, CACHES_FOLDER, Bundle, open_bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.device import Device, HostDevice
from pplex.runtime.engine import Executor
from pplex.runtime.errors import BundleError, EngineError, GpuError, LibraryError, SlotError
from pplex.runtime.gpus import ONNXRUNTIME, ONNXRUNTIME_SM, FoundGpu
from pplex.runtime.kernel_choice import chosen_kernel
from pplex.runtime.memory import check_memory, slot_nbytes
from pplex.runtime.ort import OnnxRuntimeCudaExecutor, OnnxRuntimeExecutor, has_cuda_provider, library_version
from pplex.runtime.prepared import PreparedGraph, graph_files, prepared_graphs
from pplex.runtime.trt import LoadedEngine, Scratch, TensorRTExecutor
from pplex.runtime.trt_library import TENSORRT_LIBRARIES

DEVICES = ("cpu", "cuda")
# Of other matrices, ONNX Runtime 1.31 has no kernel for some numbers of rows, and a step with these fails.
_FUSED_WIDTH = 128
REBUILD = "pplex-export build CHECKPOINT --gpu local --out BUNDLE"


@dataclass(frozen=True)
class Backend:
    """A device, and the function that loads a bundle's executors on it, for a number of slots and of spare slots.

    Spare slots take memory, but do not step in a batch.
    """

    device: Device
    load: Callable[[Bundle, int, int], dict[str, Executor]]


def choose_backend(bundle: Bundle, device: str | None, threads: int | None) -> Backend:
    """Choose where a bundle runs: compiled engines on their GPU, ONNX graphs on `device`.

    `device`: "cpu", "cuda", or None for a GPU if one is found. Raises EngineError (LibraryError, GpuError) with advice if
    the bundle cannot run.
    """
    kinds = {name: entry["kind"] for name, entry in bundle.manifest["engines"].items()}
    unknown = {f"{name} ({kind})" for name, kind in kinds.items() if kind not in (ONNXRUNTIME, *TENSORRT_LIBRARIES)}
    if unknown:
        raise BundleError(f"{bundle.folder} has engines that this version does not know: {', '.join(sorted(unknown))}.")
    if set(kinds.values()) == {ONNXRUNTIME}:
        gpu = _gpu_for_graphs(device)
        return Backend(gpu, gpu_loader(gpu)) if gpu else host_backend(HostDevice(), threads)
    if device == "cpu":
        compiled = ", ".join(name for name, kind in kinds.items() if kind != ONNXRUNTIME)
        raise EngineError(
            f"{compiled}: compiled for a GPU, and cannot run on the processor. "
            "Build a bundle for the processor without --gpu: pplex-export build CHECKPOINT --out BUNDLE"
        )
    gpu = CudaDevice()
    return Backend(gpu, gpu_loader(gpu))


def graphs_run_on_processor(device: str | None) -> bool:
    """Whether ONNX graphs run on the processor: chosen, or no GPU found. `device` and errors as in `choose_backend`."""
    return _gpu_for_graphs(device) is None


def _gpu_for_graphs(device: str | None) -> CudaDevice | None:
    """The GPU that ONNX graphs run on, None for the processor."""
    if device not in (None, *DEVICES):
        raise EngineError(f"Unknown device {device!r}: choose {' or '.join(DEVICES)}.")
    if device == "cpu" or (device is None and not has_cuda_provider()):
        return None
    if not has_cuda_provider():
        raise LibraryError(
            "The ONNX Runtime that is installed was not built for GPUs: "
            "pip uninstall onnxruntime, then pip install 'pplex-export[cuda]'"
        )
    try:
        found = CudaDevice()
    except GpuError:
        if device == "cuda":
            raise
        return None
    if device is None:
        _check_kernels(found.gpu)
    return found


def _check_kernels(gpu: FoundGpu) -> None:
    """Raise GpuError if the package onnxruntime-gpu has no kernels for this GPU: the first frame would fail."""
    compiled = ONNXRUNTIME_SM.get(platform.machine(), ())
    if gpu.sm not in compiled:
        raise GpuError(
            f"onnxruntime-gpu has no kernels for {gpu.name} (sm_{gpu.sm}); on this processor it has them for "
            f"{', '.join(f'sm_{sm}' for sm in compiled) or 'no GPU'}. Compile engines: {REBUILD}. "
            "Or run on the processor: --device cpu. If your ONNX Runtime was built for this GPU: --device cuda."
        )


def host_backend(device: HostDevice, threads: int | None, profiles: Path | None = None) -> Backend:
    """Every graph on ONNX Runtime's CPU provider. Times of operators are written to the folder `profiles`."""

    def load(bundle: Bundle, slots: int, spare: int) -> dict[str, Executor]:
        kept = prepared_here(bundle.folder, bundle.manifest)
        # The cache belongs to the bundle's own files. A graph that validation has rewritten elsewhere must not use it.
        paths = {name: bundle.graph_path(name, on_processor=True) for name in bundle.specs}
        prepared = {name: one for name, one in kept.items() if paths[name].parent == bundle.folder}
        return {
            name: OnnxRuntimeExecutor(
                paths[name],
                spec,
                device,
                threads,
                bundle.precision[name],
                bundle.folder,
                prepared.get(name),
                profiles,
            )
            for name, spec in bundle.specs.items()
        }

    return Backend(device, load)


def open_to_run(folder: Path, device: str | Backend | None) -> Bundle:
    """Open a bundle to run on `device`, as in `choose_backend`.

    If a graph's optimised form is cached for this machine, its files in the bundle were hashed before and are not read.
    """

    def unread(manifest: Mapping[str, Any]) -> set[str]:
        on_processor = {engine["kind"] for engine in manifest["engines"].values()} == {ONNXRUNTIME} and (
            device == "cpu" or (device is None and not has_cuda_provider())
        )
        kept = prepared_here(folder, manifest).items() if on_processor else ()
        return {name for graph, prepared in kept if prepared.is_there for name in graph_files(graph)}

    return open_bundle(folder, unread=unread)


def prepared_here(folder: Path, manifest: Mapping[str, Any]) -> dict[str, PreparedGraph]:
    """The places of a bundle's optimised graphs, for this processor and the installed ONNX Runtime."""
    return prepared_graphs(folder, manifest, library_version(), LAYOUT if chosen_kernel() else None)


def gpu_loader(device: CudaDevice) -> Callable[[Bundle, int, int], dict[str, Executor]]:
    """A function that loads every graph with its engine's library."""

    def load(bundle: Bundle, slots: int, spare: int) -> dict[str, Executor]:
        plans = _load_plans(bundle, device, slots, spare)
        scratch = Scratch(device, max([1, *(plan.scratch_nbytes for plan in plans.values())]))
        executors: dict[str, Executor] = {}
        for name, spec in bundle.specs.items():
            if name in plans:
                cache = cache_path(bundle.folder, name, device.gpu)
                executors[name] = TensorRTExecutor(plans[name], device, slots, scratch, cache)
            else:
                path = bundle.graph_path(name)
                fused = has_wide_matrices(bundle.config)
                executors[name] = OnnxRuntimeCudaExecutor(
                    path, spec, device, bundle.precision[name], bundle.folder, fused
                )
        return executors

    return load


def has_wide_matrices(config: ModelConfig) -> bool:
    """Whether ONNX Runtime's fused products with weights in blocks fit every matrix: see OnnxRuntimeCudaExecutor."""
    widths = (stack_width for stack in (config.temporal, config.depth) for stack_width in (stack.dim, stack.hidden))
    return all(width % _FUSED_WIDTH == 0 for width in (*widths, config.text_card, config.audio_card))


def _load_plans(bundle: Bundle, device: CudaDevice, slots: int, spare: int) -> dict[str, LoadedEngine]:
    """The compiled engines by graph. Raises GpuMemoryError if they and all slots do not fit into the GPU's memory."""
    engines, capacity = bundle.manifest["engines"], bundle.config.temporal.capacity
    kinds = {name: entry["kind"] for name, entry in engines.items() if entry["kind"] != ONNXRUNTIME}
    modules = {kind: TENSORRT_LIBRARIES[kind].load() for kind in sorted(set(kinds.values()))}
    check_engines(engines, device.gpu, {kind: str(module.__version__) for kind, module in modules.items()}, slots)

    per_slot = slot_nbytes(bundle.specs.values(), capacity)
    check_memory(device.free_nbytes(), per_slot, engines_nbytes(bundle.manifest) + spare * per_slot, slots, capacity)
    plans = {
        name: LoadedEngine(modules[kind], TENSORRT_LIBRARIES[kind], bundle.graph_path(name), bundle.specs[name])
        for name, kind in kinds.items()
    }
    scratch_nbytes = max((plan.scratch_nbytes for plan in plans.values()), default=0)
    check_memory(device.free_nbytes(), per_slot, scratch_nbytes + spare * per_slot, slots, capacity)
    return plans


def check_engines(
    engines: Mapping[str, Mapping[str, Any]], gpu: FoundGpu, versions: Mapping[str, str], slots: int
) -> None:
    """Raise an error that names every engine made for another GPU, by another version, or for fewer slots.

    `engines` as in a manifest; `versions` of the installed libraries by kind.
    """
    made = {name: e for name, e in engines.items() if e["kind"] != ONNXRUNTIME}
    wrong = [
        f"{name} was built for sm_{e['sm']} ({e['gpu']}) by {e['made_with']}; this GPU ({gpu.name}) is sm_{gpu.sm}."
        for name, e in made.items()
        if e["sm"] != gpu.sm
    ]
    if wrong:
        raise GpuError("\n".join([*wrong, f"Rebuild it here: {REBUILD}"]))
    old = {name: e["made_with"] for name, e in made.items() if e["made_with"] != f"{e['kind']} {versions[e['kind']]}"}
    if old:
        installs = {
            f"pip install {TENSORRT_LIBRARIES[made[name]['kind']].package}=={by.rpartition(' ')[2]}"
            for name, by in old.items()
        }
        lines = [f"{name} was built by {by}; {versions[made[name]['kind']]} is installed." for name, by in old.items()]
        raise LibraryError(
            "\n".join([*lines, f"Install that version ({', '.join(sorted(installs))}), or rebuild it: {REBUILD}"])
        )
    small = [f"{name} takes {e['slots']}" for name, e in made.items() if e["slots"] is not None and e["slots"] < slots]
    if small:
        raise SlotError(
            f"{slots} slots are more than the engines were built for: {', '.join(small)}. "
            f"Load fewer, or rebuild it: {REBUILD} --slots {slots}"
        )


def engines_nbytes(manifest: Mapping[str, Any]) -> int:
    """Bytes of the engines' files. For a graph, its weights in NAME.data are included."""
    files = manifest["files"]
    names = {entry["file"] for entry in manifest["engines"].values()}
    weights = {str(Path(name).with_suffix(".data")) for name in names if name.endswith(".onnx")}
    return sum(files[name]["nbytes"] for name in names | weights if name in files)


def cache_path(folder: Path, graph: str, gpu: FoundGpu) -> Path:
    """The cache file of kernels compiled at load: one for each kind of GPU that uses the bundle."""
    return folder / CACHES_FOLDER / f"{graph}.sm_{gpu.sm}{CACHE_SUFFIX}"
