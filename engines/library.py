"""TensorRT-RTX and TensorRT: they have the same Python API with few differences. Called by `export.build` and `engines`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.runtime.bundle import CACHE_SUFFIX, CACHES_FOLDER
from pplex.runtime.errors import BuildError, GpuError, LibraryError
from pplex.runtime.gpus import ONNXRUNTIME_SM, RTX_SM, TENSORRT, TENSORRT_RTX, Gpu, parse_gpu
from pplex.runtime.libraries import load_library
from pplex.runtime.trt_library import TENSORRT_LIBRARIES, TensorRTLibrary

ANY = "any"  # by its documentation, such an engine runs on 8.0, 8.6, 8.9, 12.0 "and later"
OWN = "own"  # the GPU's own architecture
COMPILED_FOR = (ANY, OWN, *(f"sm_{sm}" for sm in RTX_SM))
TIMING_CACHE_FILE = f"tensorrt_timings{CACHE_SUFFIX}"


@dataclass(frozen=True)
class EngineOptions:
    """Options of the builder.

    tf32: float32 matrix products may round their factors to 10 bits of fraction, as the libraries do by default.
    workspace_mb: limit of an engine's scratch memory.
    optimization_level: effort of TensorRT's search for kernels, 0 to 5. TensorRT-RTX has no such option, because it chooses
    kernels when an engine is first loaded.
    compiled_for: another architecture that the GPU can run, one of COMPILED_FOR, for TensorRT-RTX only.
    """

    tf32: bool = False
    workspace_mb: int | None = None
    optimization_level: int | None = None
    compiled_for: str | None = None


DEFAULT_OPTIONS = EngineOptions()


@dataclass(frozen=True)
class LoadedLibrary:
    """TensorRT or TensorRT-RTX, imported: `trt` is its module."""

    description: TensorRTLibrary
    trt: Any

    @property
    def kind(self) -> str:
        return self.description.kind

    @property
    def title(self) -> str:
        return self.description.title

    def __str__(self) -> str:
        return f"{self.title} {self.trt.__version__}"

    @property
    def made_with(self) -> str:
        return f"{self.kind} {self.trt.__version__}"


def layers_path(engine: Path) -> Path:
    """The file with the record of an engine's layers."""
    return engine.with_suffix(".layers.json")


def open_library(gpu: Gpu) -> LoadedLibrary:
    """The library that builds for a GPU. Raises BuildError if it cannot be loaded, or cannot build for this GPU here."""
    description = TENSORRT_LIBRARIES[gpu.kind]
    missing = (
        f"Engines for {gpu.title} are built by {description.title}, which is not installed: "
        f"pip install 'pplex-export[export,{description.extra}]'{_alternative(gpu)}"
    )
    try:
        trt = load_library(description.module, missing)
    except LibraryError as error:
        raise BuildError(str(error)) from error
    library = LoadedLibrary(description, trt)
    if gpu.kind == TENSORRT:
        _check_present(library, gpu)
    return library


def check_options(library: LoadedLibrary, options: EngineOptions) -> None:
    """Raises BuildError for an option without effect."""
    if library.kind == TENSORRT_RTX and options.optimization_level is not None:
        raise BuildError(
            f"{library} builds the same engine at every optimization level: leave out --optimization-level."
        )
    if library.kind != TENSORRT_RTX and options.compiled_for is not None:
        raise BuildError(f"{library} compiles for the GPU it runs on; only TensorRT-RTX takes --compiled-for.")


def configure(library: LoadedLibrary, config: Any, gpu: Gpu, options: EngineOptions) -> None:
    """Set a builder configuration's target and options. Raises BuildError for an option without effect."""
    check_options(library, options)
    trt = library.trt
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if library.kind == TENSORRT_RTX:
        config.set_flag(
            trt.BuilderFlag.REQUIRE_USER_ALLOCATION
        )  # without it a frame cannot be captured as a CUDA graph
        own = options.compiled_for in (None, OWN)
        _set_target(library, config, f"sm_{gpu.sm}" if own else str(options.compiled_for))
    elif options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level


def _set_target(library: LoadedLibrary, config: Any, target: str) -> None:
    if target == ANY:
        return
    known = library.trt.ComputeCapability.__members__
    if target.replace("sm_", "SM") not in known:
        raise BuildError(
            f"{library} cannot compile for {target}. For an engine without a fixed architecture: --compiled-for {ANY}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[target.replace("sm_", "SM")], 0)


@contextmanager
def timing_cache(library: LoadedLibrary, config: Any, folder: Path) -> Iterator[None]:
    """Let TensorRT use and extend the kernel timings cached in `folder`.

    TensorRT-RTX does not time kernels. Its documentation says that the cache has no effect and needs a GPU.
    """
    if library.kind == TENSORRT_RTX:
        yield
        return
    path = folder / CACHES_FOLDER / TIMING_CACHE_FILE
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    config.set_timing_cache(cache, False)
    yield
    timings = config.get_timing_cache().serialize()
    if timings is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(memoryview(timings))


def creation_flags(trt: Any) -> int:
    """Flags for a network with the graph's own types. TensorRT 11 always uses these types, and may lack the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _check_present(library: LoadedLibrary, gpu: Gpu) -> None:
    """Raises BuildError unless the GPU is here: TensorRT times kernels on the GPU it builds for."""
    try:
        here = parse_gpu("local")
    except GpuError as error:
        raise BuildError(
            f"{library.title} builds on the GPU it builds for: run this on a machine with {gpu.title}{_alternative(gpu)}"
        ) from error
    if here.sm != gpu.sm:
        raise BuildError(
            f"{library.title} builds on the GPU it builds for: {gpu.title} is sm_{gpu.sm}, and this machine has "
            f"{here.title} (sm_{here.sm}). Run this there, or build for this one: --gpu local{_alternative(gpu)}"
        )


def _alternative(gpu: Gpu) -> str:
    """Advice: builds that need neither the library nor the GPU. Ends a sentence."""
    ways = []
    if gpu.kind == TENSORRT and gpu.sm in RTX_SM:
        ways.append(
            f"--gpu sm_{gpu.sm}: a TensorRT-RTX engine of this architecture, which NVIDIA does not support on {gpu.title}"
        )
    if any(gpu.sm in compiled for compiled in ONNXRUNTIME_SM.values()):
        ways.append(f"leave out --gpu: ONNX Runtime runs the graphs on {gpu.title} too")
    return "".join(f". Or {way}" for way in ways) + "."
