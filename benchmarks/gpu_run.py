"""The options of a run of benchmarks/gpu.py, what this machine lacks, and how its commands start: called by the steps."""

import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from pplex.runtime.gpus import ONNXRUNTIME_SM, RTX_SM

REPOSITORY = Path(__file__).resolve().parents[1]
BENCHMARKS = REPOSITORY / "benchmarks"
DEVICES = ("cuda", "cpu", "stand-in")
# Context steps: none; 80 s; a full ring (3000 as released); a ring overwritten once. With many slots only two of them,
# because a GPU reads whole rings whatever they hold.
CONTEXT_STEPS, CONTEXT_STEPS_OF_MANY = ("0", "1000", "3000", "6000"), ("0", "3000")
FRAMES, FRAMES_OF_MANY = "300", "200"  # of each cell: all that fits into half an hour of machine time
PAIR_S = 30.0


@dataclass(frozen=True)
class GpuRun:
    """The options of a run: working folder, device, size of the checkpoint.

    `sm`: 90 for a GPU of compute capability 9.0, None if unknown. `provider`: whether ONNX Runtime's CUDA provider is here.
    `named`: the steps that were named.
    """

    work: Path
    device: str
    size: str
    sm: int | None = None
    provider: bool = True
    named: frozenset[str] = field(default_factory=frozenset)

    @property
    def wide(self) -> str:
        """The size of the checkpoint with two layers: as wide as the released one, except in a rehearsal."""
        return "wide" if self.size == "full" else self.size

    @property
    def command_device(self) -> str:
        """The device as our commands name it."""
        return "cpu" if self.device == "cpu" else "cuda"

    @property
    def pair_seconds(self) -> float:
        return PAIR_S if self.size == "full" else 2.0

    def checkpoint(self, size: str) -> Path:
        """The checkpoint of the full size or with two layers: `size` is "full" or "wide"."""
        return self.work / f"checkpoint-{size}" / "model"

    def bundle(self, side: str) -> Path:
        return self.work / side / "bundle"

    def out(self, name: str) -> Path:
        return self.work / "out" / f"{name}.json"

    def lengths(self, slots: int) -> tuple[str, ...]:
        """The options of a measurement with up to `slots` slots."""
        context_steps = (CONTEXT_STEPS if slots == 1 else CONTEXT_STEPS_OF_MANY) if self.size == "full" else ("0", "60")
        frames = (FRAMES if slots == 1 else FRAMES_OF_MANY) if self.size == "full" else "20"
        words = (word for length in context_steps for word in ("--context-steps", length))
        return ("--slots", str(slots), *words, "--frames", frames)

    # What it lacks: a reason to skip a step, or None.

    @property
    def lacks_gpu(self) -> str | None:
        return None if self.device == "cuda" else f"it needs a GPU, and --device is {self.device}"

    @property
    def lacks_values(self) -> str | None:
        return "the stand-in computes nothing, so no value can be right" if self.device == "stand-in" else None

    @property
    def lacks_provider(self) -> str | None:
        """ONNX Runtime's kernels for this GPU."""
        if self.device != "cuda":
            return None
        if not self.provider:
            return "onnxruntime-gpu is not here yet: carry its wheel (docs/gpu_run.md)"
        known = ONNXRUNTIME_SM.get(platform.machine(), ())
        return _without_kernels("onnxruntime-gpu", self.sm, known)

    @property
    def lacks_rtx(self) -> str | None:
        """TensorRT-RTX's kernels for this GPU. A step that is named runs anyway, to find out."""
        if any("rtx" in name for name in self.named):
            return None
        reason = _without_kernels("TensorRT-RTX", self.sm, RTX_SM)
        return reason and f"{reason}; name the step to try"

    # Commands.

    def pplex(self, *arguments: object) -> tuple[str, ...]:
        """`pplex-export` on this run's device."""
        return self.script("pplex-export", *arguments) if self.device == "stand-in" else pplex(*arguments)

    def probe(self, *arguments: object) -> tuple[str, ...]:
        return self.script("gpu_probes.py", *arguments)

    def script(self, name: str, *arguments: object) -> tuple[str, ...]:
        """A script beside this file."""
        before = (str(BENCHMARKS / "gpu_stand_in.py"), name) if self.device == "stand-in" else (str(BENCHMARKS / name),)
        return (sys.executable, "-P", *before, *map(str, arguments))


def pplex(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", "from pplex.cli import main; main()", *map(str, arguments))


def _without_kernels(library: str, sm: int | None, known: tuple[int, ...]) -> str | None:
    if sm is None or sm in known:
        return None
    return f"{library} has no kernels for sm_{sm}, only for {', '.join(f'sm_{one}' for one in known)}"


def found_sm() -> int | None:
    """90 for a first GPU of compute capability 9.0; None without a GPU."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return int(printed.split()[0].replace(".", ""))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def has_provider() -> bool:
    """Whether the ONNX Runtime that Python would import has a CUDA provider. Nothing is imported."""
    found = find_spec("onnxruntime")
    folders = found.submodule_search_locations if found else None
    return any(Path(folder, "capi/libonnxruntime_providers_cuda.so").is_file() for folder in folders or ())
