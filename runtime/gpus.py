"""NVIDIA GPUs by their names in `--gpu`: called by `plan`, `build`, the runtime and `doctor`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pplex.runtime.errors import GpuError, LibraryError
from pplex.runtime.libraries import load_library
from pplex.runtime.precision import PRECISIONS

ONNXRUNTIME, TENSORRT_RTX, TENSORRT = "onnxruntime", "tensorrt-rtx", "tensorrt"

# Targets of TensorRT-RTX 1.7: its `ComputeCapability`.
RTX_SM = (75, 80, 86, 89, 120, 121)
# Compute capabilities that `--gpu sm_NN` may name (developer.nvidia.com/cuda-gpus).
KNOWN_SM = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)

# Compute capabilities with kernels in the wheels of onnxruntime-gpu 1.31, by processor. The wheels have no PTX that a driver
# could compile, so graphs do not run on other GPUs.
ONNXRUNTIME_SM: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"x86_64": (75, 80, 86, 89, 90, 120), "aarch64": (89, 90, 120, 121)}
)

# The first compute capability that supports a weight format. TensorRT-RTX refuses to compile fp8 below 8.9, and int4 and
# bf16 below 8.0. It compiles int8 weights for 7.5, but its support matrix says No for 7.5 and Yes from 8.6 on. The matrix
# has no row for 8.0. In GPUS only the A100 has 8.0, and its library is TensorRT.
_SINCE_SM = {"fp32": 75, "fp16": 75, "bf16": 80, "int8": 80, "int4": 80, "fp8": 89, "mixed": 80}


@dataclass(frozen=True)
class Gpu:
    """One GPU. `sm`: 89 for compute capability 8.9. `memory_nbytes`: None if only the architecture was named.

    `kind` is the engine to build for it. ONNX Runtime's CUDA provider runs graphs on the GPUs in ONNXRUNTIME_SM.
    """

    name: str
    title: str
    sm: int
    memory_nbytes: int | None
    kind: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names of `--precision` that it supports."""
        return tuple(name for name in PRECISIONS if self.runs(name))

    def runs(self, name: str) -> bool:
        """Whether it supports the precision `name`."""
        return self.sm >= _SINCE_SM[name]

    def check_precision(self, precision: Mapping[str, str]) -> None:
        """Raise GpuError if this GPU does not support a graph's precision."""
        wrong = [f"{graph}={name}" for graph, name in precision.items() if not self.runs(name)]
        if wrong:
            raise GpuError(
                f"{self.title} (sm_{self.sm}) cannot run {', '.join(wrong)}: it supports {', '.join(self.precisions)}. "
                f"Choose another --precision, or a GPU that supports it: pplex-export plan"
            )


@dataclass(frozen=True)
class FoundGpu:
    """A GPU of this machine: `sm` is 89 for compute capability 8.9."""

    name: str
    sm: int
    memory_nbytes: int

    @classmethod
    def of(cls, properties: Any) -> "FoundGpu":
        """The GPU from the result of cudaGetDeviceProperties."""
        name = properties.name.partition(b"\0")[0].decode(errors="replace")
        return cls(name, 10 * properties.major + properties.minor, properties.totalGlobalMem)


def parse_gpu(text: str) -> Gpu:
    """The GPU that `--gpu` names: one of GPUS, an architecture such as sm_89, or `local` for this machine's first GPU.

    Raises GpuError that lists the possible names.
    """
    if text in GPUS:
        return GPUS[text]
    if text == "local":
        return _local()
    if match := re.fullmatch(r"sm_(\d+)", text):
        return _architecture(int(match[1]))
    raise GpuError(
        f"Unknown GPU {text!r}. Known: {', '.join(GPUS)}. For another GPU, give its compute capability "
        f"(sm_89 for 8.9, listed at developer.nvidia.com/cuda-gpus). For this machine's GPU, give local."
    )


def _architecture(sm: int) -> Gpu:
    if sm not in KNOWN_SM:
        raise GpuError(
            f"Engines cannot be built for sm_{sm}, only for {', '.join(f'sm_{known}' for known in KNOWN_SM)}."
        )
    kind = TENSORRT_RTX if sm in RTX_SM else TENSORRT
    return Gpu(f"sm_{sm}", f"a GPU of sm_{sm}", sm, None, kind)


def _local() -> Gpu:
    """The first GPU that CUDA sees; CUDA_VISIBLE_DEVICES can select it."""
    missing = "--gpu local needs cuda-bindings, which is not installed: pip install 'pplex-export[rtx]'"
    try:
        cudart = load_library("cuda.bindings.runtime", missing)
    except LibraryError as error:
        raise GpuError(str(error)) from error
    status, properties = cudart.cudaGetDeviceProperties(0)
    if status != cudart.cudaError_t.cudaSuccess:
        raise GpuError(
            f"This machine has no NVIDIA GPU that CUDA can use ({status.name}). Name the GPU to build for, such as "
            f"--gpu rtx-4090; pplex-export plan lists the names."
        )
    found = FoundGpu.of(properties)
    return Gpu("local", found.name, found.sm, found.memory_nbytes, kind_for(found.name, found.sm))


def kind_for(title: str, sm: int) -> str:
    """The kind of engine for a GPU: TensorRT-RTX if its title has the word RTX, or for the GB10 (sm_121); else TensorRT.

    NVIDIA supports TensorRT-RTX on RTX cards and, since 1.5, on the GB10. A data center GPU may have the same architecture
    (L4 and RTX 4090 are both sm_89), but is not supported. It gets TensorRT, which must build on that GPU.
    """
    return TENSORRT_RTX if sm in RTX_SM and ("RTX" in title or sm == 121) else TENSORRT


def _gpu(name: str, title: str, sm: int, memory_gb: int) -> tuple[str, Gpu]:
    return name, Gpu(name, title, sm, memory_gb * 10**9, kind_for(title, sm))


# Memory as it is sold, in 10^9 bytes.
GPUS: Mapping[str, Gpu] = MappingProxyType(
    dict(
        (
            _gpu("rtx-2080-ti", "GeForce RTX 2080 Ti", 75, 11),
            _gpu("rtx-3060", "GeForce RTX 3060", 86, 12),
            _gpu("rtx-3090", "GeForce RTX 3090", 86, 24),
            _gpu("rtx-4060", "GeForce RTX 4060", 89, 8),
            _gpu("rtx-4070", "GeForce RTX 4070", 89, 12),
            _gpu("rtx-4080", "GeForce RTX 4080", 89, 16),
            _gpu("rtx-4090", "GeForce RTX 4090", 89, 24),
            _gpu("rtx-5060", "GeForce RTX 5060", 120, 8),
            _gpu("rtx-5070", "GeForce RTX 5070", 120, 12),
            _gpu("rtx-5080", "GeForce RTX 5080", 120, 16),
            _gpu("rtx-5090", "GeForce RTX 5090", 120, 32),
            _gpu("rtx-a6000", "RTX A6000", 86, 48),
            _gpu("rtx-6000-ada", "RTX 6000 Ada", 89, 48),
            _gpu("rtx-pro-6000", "RTX PRO 6000 Blackwell", 120, 96),
            _gpu("dgx-spark", "DGX Spark (GB10)", 121, 128),
            _gpu("t4", "T4", 75, 16),
            _gpu("a10", "A10", 86, 24),
            _gpu("l4", "L4", 89, 24),
            _gpu("l40s", "L40S", 89, 48),
            _gpu("a100", "A100 80 GB", 80, 80),
            _gpu("h100", "H100", 90, 80),
            _gpu("h200", "H200", 90, 141),
            _gpu("b200", "B200", 100, 180),
            _gpu("jetson-orin", "Jetson AGX Orin 64 GB", 87, 64),
            _gpu("jetson-thor", "Jetson T5000 (Thor)", 110, 128),
        )
    )
)
