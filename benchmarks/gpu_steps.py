"""The steps of benchmarks/gpu.py, the most valuable first."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpu_results import Step

REPOSITORY = Path(__file__).resolve().parents[1]
PROBES = str(REPOSITORY / "benchmarks/gpu_probes.py")
WAV = str(REPOSITORY / "tests/golden/tiny/checkpoint/voices/synthetic.wav")
# Not fp8: ONNX Runtime 1.31 converts its weights to float16 at load time, and computes in float16.
PRECISIONS = ("bf16", "fp16", "int8", "int4")
MOST_SLOTS = 64  # measured with 1, 2, 4, ... and this many slots
GOLDEN = "tests/validate/test_golden_gpu.py"
NO_GPU = "it needs a GPU, and --device is cpu"
LACKS = {"bf16": "ONNX Runtime does not compute in bf16 on the processor"}
# Context steps: none; 80 s; a full ring (3000 as released); a ring overwritten once. With many slots only two of them,
# because a GPU reads whole rings whatever they hold.
CONTEXT_STEPS, CONTEXT_STEPS_OF_MANY = ("0", "1000", "3000", "6000"), ("0", "3000")
FRAMES, FRAMES_OF_MANY = "300", "200"  # of each cell: all that fits into half an hour of machine time


@dataclass(frozen=True)
class GpuRun:
    """The options of a run: working folder, device, size of the checkpoint."""

    work: Path
    device: str
    size: str

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint" / "model"

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


def pplex(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", "from pplex.cli import main; main()", *map(str, arguments))


def probe(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-P", PROBES, *map(str, arguments))


def all_steps(run: GpuRun) -> list[Step]:
    """Every step, the most valuable first. `lacks` says what this machine does not have."""
    checkpoint = pplex("synth", run.checkpoint, "--size", run.size)
    steps = [
        Step("machine", probe("machine", run.device), 90, json=True),
        *tests(run),
        Step("checkpoint", checkpoint, 400, least_s=100, needs=("machine",), makes=run.checkpoint),
        *bundle_steps(run, PRECISIONS[0]),
        *peers(run),
    ]
    for precision in PRECISIONS[1:]:
        steps += bundle_steps(run, precision)
    return [*steps, *compiled(run)]


def tests(run: GpuRun) -> Iterator[Step]:
    """The tests marked `gpu`. The golden suite has a process for each library, because a library may crash it."""
    test = partial(Step, limit_s=240, lacks=None if run.gpu else NO_GPU, needs=("machine",))
    for library in ("onnxruntime", "rtx", "rtx-any", "rtx-sm_80", "tensorrt"):
        name, one = f"golden.{library}", f"{GOLDEN}::test_golden_suite[{library}]"
        yield test(name, probe("tests", run.out(name), one, "-m", "gpu"), out=run.out(name))
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        file = path.relative_to(REPOSITORY).as_posix()
        if "mark.gpu" in path.read_text() and file != GOLDEN:
            name = f"tests.{path.stem.removeprefix('test_')}"
            yield test(name, probe("tests", run.out(name), file, "-m", "gpu"), out=run.out(name))


def bundle_steps(run: GpuRun, precision: str) -> Iterator[Step]:
    """A bundle of ONNX graphs: built, measured, checked for sound, compared with its checkpoint, and deleted."""
    # Without a calibration: it takes minutes and does not change the speed.
    options = ("--precision", precision, "--calibration", "none", "--no-validate", "--out", run.bundle(precision))
    build = pplex("build", run.checkpoint, *options)
    yield Step(f"build.{precision}", build, 400, 150, needs=("checkpoint",), makes=run.bundle(precision))
    for step in measured(run, precision):
        computed = run.gpu or step.name.startswith("validate")  # validate computes in float32 and rounds
        lacks = None if computed else LACKS.get(precision)
        yield replace(step, needs=(f"build.{precision}", *step.needs), lacks=lacks)


def measured(run: GpuRun, side: str) -> Iterator[Step]:
    """The measurements of a bundle."""
    bundle, device = run.bundle(side), ("--device", run.device)
    yield cells(run, f"stages.{side}", 1, pplex("bench", "stages", bundle))
    frame = pplex("bench", "frame", bundle, *device, "--sessions", 1, "--frames", FRAMES, "--json")
    yield Step(f"frame.{side}", frame, 200, 60, json=True)
    yield Step(f"speak.{side}", probe("speak", bundle, run.device, WAV), 200, 60, json=True)
    sections = ("--only", "graphs", "--only", "drift", "--frames", 64)
    held = pplex("validate", bundle, "--reference", run.checkpoint, *sections, *device, "--json")
    yield Step(f"validate.{side}", held, 500, 150, needs=("checkpoint",), json=True)
    yield cells(run, f"stages.{side}.{MOST_SLOTS}", MOST_SLOTS, pplex("bench", "stages", bundle))
    yield Step(f"priming.{side}", pplex("bench", "priming", bundle, *device, "--json"), 200, 60, json=True)


def peers(run: GpuRun) -> Iterator[Step]:
    """The checkpoint run by torch in three ways, and by the original project's code."""
    graphs = None if run.gpu else NO_GPU
    yield replace(of_checkpoint(run, "torch.graphs", "torch", "--how", "graphs"), lacks=graphs)
    for how in ("compiled", "eager"):
        yield replace(of_checkpoint(run, f"torch.{how}", "torch", "--how", how), limit_s=540)
    missing = None if find_spec("moshi") else "moshi is not installed: pip install --no-deps moshi==0.2.13"
    yield replace(of_checkpoint(run, "moshi", "moshi"), lacks=missing)
    more = of_checkpoint(run, f"torch.graphs.{MOST_SLOTS}", "torch", "--how", "graphs", slots=MOST_SLOTS)
    yield replace(more, lacks=graphs)


def of_checkpoint(run: GpuRun, name: str, what: str, *options: object, slots: int = 1) -> Step:
    return replace(cells(run, name, slots, pplex("bench", what, run.checkpoint, *options)), needs=("checkpoint",))


def cells(run: GpuRun, name: str, slots: int, command: tuple[str, ...]) -> Step:
    """A measurement of conversations of several lengths. A later call resumes it."""
    options = (*run.lengths(slots), "--device", run.device, "--out", str(run.out(name)))
    return Step(name, (*command, *options), 400, 60, out=run.out(name))


def compiled(run: GpuRun) -> Iterator[Step]:
    """Engines: of TensorRT-RTX with the first target that runs on this GPU, and of TensorRT if it is installed."""
    targets = {"rtx": "own", "rtx-any": "any", "rtx-sm_80": "sm_80"}
    ways: dict[str, tuple[str, ...]] = {side: ("--compiled-for", target) for side, target in targets.items()}
    ways["tensorrt"] = ()
    for side, options in ways.items():
        earlier = tuple(f"golden.{way}" for way in list(ways)[: list(ways).index(side)])
        for step in engine_steps(run, side, options):
            yield replace(
                step,
                needs=(f"golden.{side}", *step.needs),
                unless=earlier if side != "tensorrt" else (),
                lacks=None if run.gpu else NO_GPU,
            )


def engine_steps(run: GpuRun, side: str, options: Sequence[str]) -> Iterator[Step]:
    engines = ("--precision", PRECISIONS[0], "--gpu", "local", "--slots", MOST_SLOTS, *options)
    build = pplex("build", run.checkpoint, *engines, "--no-validate", "--out", run.bundle(side))
    yield Step(f"build.{side}", build, 540, 200, needs=("checkpoint",), makes=run.bundle(side))
    for step in measured(run, side):
        yield replace(step, needs=(f"build.{side}", *step.needs))
