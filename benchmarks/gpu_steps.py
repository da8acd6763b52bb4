"""The steps of benchmarks/gpu.py in the order in which they run: those without wheels first, then the most valuable."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from gpu_results import Step
from gpu_run import REPOSITORY, GpuRun, pplex

WAV = REPOSITORY / "tests/golden/tiny/checkpoint/voices/synthetic.wav"
# fp8 comes after the others: ONNX Runtime 1.31 converts its weights to float16 at load time, and computes in float16.
FIRST, MORE = ("bf16", "int4", "fp8"), ("fp16", "int8")
MOST_SLOTS = 64  # measured with 1, 2, 4, ... and this many slots
GOLDEN = "tests/validate/test_golden_gpu.py"
REHEARSED_S = 60  # any step takes less with a small checkpoint
CANDIDATES = 256  # of TopK, compared with the number that graphs are exported with
# TensorRT-RTX's engines for this GPU, for no named architecture, and for sm_80.
RTX = {"rtx": "own", "rtx-any": "any", "rtx-sm_80": "sm_80"}


def all_steps(run: GpuRun) -> list[Step]:
    """Every step. `lacks` says what this machine does not have."""
    steps = [*without_wheels(run), *two_layers(run), *pairs(run), *full_size(run), *compiled(run)]
    # The least times are estimates for the full size.
    return steps if run.size == "full" else [replace(step, least_s=min(step.least_s, REHEARSED_S)) for step in steps]


def without_wheels(run: GpuRun) -> Iterator[Step]:
    """Load 0: what needs no library that must be carried. Its results are there within five minutes."""
    yield Step("machine", run.probe("machine", run.device), 90, json=True)
    yield tests(run, "cuda_device", "tests/runtime/test_cuda_device.py", least_s=40)
    wide = pplex("synth", run.checkpoint("wide"), "--size", run.wide)
    yield Step("checkpoint.wide", wide, 120, 40, needs=("machine",), makes=run.checkpoint("wide"))
    yield of_checkpoint(run, "torch.graphs.wide", "torch", "--how", "graphs", slots=MOST_SLOTS, wide=True, least_s=60)
    yield tests(run, "torch_backend", "tests/bench/test_torch_backend.py", least_s=90)


def two_layers(run: GpuRun) -> Iterator[Step]:
    """Load 1: is our model the same on ONNX Runtime? The golden model is in float32, the wide one has the real kernels."""
    yield golden(run, "onnxruntime", run.lacks_provider)
    for precision in ("bf16", "fp16", "int4"):
        yield wide_build(run, precision, "--precision", precision)
        held = validate(run, f"wide-{precision}", "wide")
        yield replace(held, limit_s=300, least_s=100, lacks=run.lacks_provider or run.lacks_values)


def wide_build(run: GpuRun, side: str, *options: object) -> Step:
    return build(run, f"wide-{side}", "wide", *options, limit_s=200, least_s=50)


def pairs(run: GpuRun) -> Iterator[Step]:
    """What is faster? Each pair takes turns in one process: see gpu_pairs.py."""
    bf16 = run.bundle("wide-bf16")
    yield wide_build(run, "mask", "--precision", "bf16", "--for-engines")
    sides = (("mask", run.bundle("wide-mask")), ("lengths", bf16))
    yield pair(run, "mask", sides, ("temporal",), (1, 8, 64), contexts=2, needs=("wide-mask", "wide-bf16"))
    int4, fpa = run.bundle("wide-int4"), "ep.cuda.fpa_intb_gemm"
    switched = (("off", int4, f"{fpa}=0"), ("on", int4, f"{fpa}=1"))
    yield pair(run, "fpa_intb", switched, ("temporal", "depth"), (1, 8, 32), needs=("wide-int4",))
    fewer = wide_build(run, "topk", "--precision", "bf16")
    yield replace(fewer, command=run.probe("candidates", CANDIDATES, *fewer.command[4:]))
    sides = (("as exported", bf16), (str(CANDIDATES), run.bundle("wide-topk")))
    yield pair(run, "topk", sides, ("temporal", "depth"), (1, 64), needs=("wide-topk", "wide-bf16"))


def full_size(run: GpuRun) -> Iterator[Step]:
    """How fast is the released size, beside torch and the original project's code?"""
    made = pplex("synth", run.checkpoint("full"), "--size", run.size)
    yield Step("checkpoint", made, 400, 100, needs=("machine",), makes=run.checkpoint("full"))
    yield full_build(run, "bf16")
    full = run.bundle("bf16")  # the codec of the wide checkpoint is too small for this pair
    searches = [(how, full, f"cudnn_conv_algo_search={how}") for how in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")]
    yield pair(run, "cudnn", searches, ("mimi_encode", "mimi_decode"), (1, 64), needs=("bf16",), least_s=200)
    yield stages(run, "bf16")
    for precision in FIRST[1:]:
        yield from (full_build(run, precision), stages(run, precision))
    yield from peers(run)
    yield from (stages(run, precision, MOST_SLOTS) for precision in FIRST)
    yield of_checkpoint(run, f"torch.graphs.{MOST_SLOTS}", "torch", "--how", "graphs", slots=MOST_SLOTS)
    for precision in FIRST:
        yield from rest(run, precision)
    for precision in MORE:
        yield from (full_build(run, precision), stages(run, precision), stages(run, precision, MOST_SLOTS))
        yield from rest(run, precision)


def peers(run: GpuRun) -> Iterator[Step]:
    """The checkpoint run by torch in three ways, and by the original project's code."""
    yield of_checkpoint(run, "torch.graphs", "torch", "--how", "graphs")
    compiled = replace(of_checkpoint(run, "torch.compiled", "torch", "--how", "compiled", least_s=150), limit_s=540)
    slow = "torch.compile takes too long on the processor for a rehearsal" if run.device == "cpu" else None
    yield replace(compiled, lacks=compiled.lacks or slow)
    yield replace(of_checkpoint(run, "torch.eager", "torch", "--how", "eager", least_s=150), limit_s=540)
    step = of_checkpoint(run, "moshi", "moshi")
    missing = None if find_spec("moshi") else "moshi is not installed: pip install --no-deps moshi==0.2.13"
    yield replace(step, lacks=step.lacks or missing)


def compiled(run: GpuRun) -> Iterator[Step]:
    """Engines: of TensorRT-RTX with the first target that runs on this GPU, and of TensorRT if it is installed."""
    ways: dict[str, tuple[str, ...]] = {side: ("--compiled-for", target) for side, target in RTX.items()}
    ways["tensorrt"] = ()
    reasons = {side: run.lacks_gpu or (run.lacks_rtx if side in RTX else None) for side in ways}
    yield from (golden(run, side, reasons[side]) for side in ways)
    for side, options in ways.items():
        earlier = tuple(f"golden.{way}" for way in list(ways)[: list(ways).index(side)])
        for step in engine_steps(run, side, options):
            unless = earlier if side != "tensorrt" else ()
            yield replace(step, needs=(f"golden.{side}", *step.needs), unless=unless, lacks=reasons[side])


def engine_steps(run: GpuRun, side: str, options: Sequence[str]) -> Iterator[Step]:
    engines = ("--precision", "bf16", "--gpu", "local", "--slots", MOST_SLOTS, *options)
    yield build(run, side, "full", *engines, limit_s=540, least_s=200)
    yield from (stages(run, side), stages(run, side, MOST_SLOTS), *rest(run, side))


# Single steps.


def tests(run: GpuRun, name: str, *arguments: object, least_s: float = 60) -> Step:
    """Tests marked `gpu`."""
    out, name = run.out(f"tests.{name}"), f"tests.{name}"
    command = run.probe("tests", out, *arguments, "-m", "gpu")
    return Step(name, command, 240, least_s, needs=("machine",), lacks=run.lacks_gpu, out=out)


def golden(run: GpuRun, library: str, lacks: str | None) -> Step:
    """The golden suite has a process for each library, because a library may crash it."""
    step = tests(run, library, f"{GOLDEN}::test_golden_checks_pass_on_a_gpu[{library}]")
    return replace(step, name=f"golden.{library}", lacks=run.lacks_gpu or lacks)


def build(run: GpuRun, side: str, of: str, *options: object, limit_s: float = 400, least_s: float = 150) -> Step:
    """A bundle of the checkpoint `of`, "full" or "wide"; it is deleted after the last step that needs it."""
    # Without a calibration: it takes minutes and does not change the speed. fp8 is impossible without one.
    calibration = () if "fp8" in options else ("--calibration", "none")
    made = pplex("build", run.checkpoint(of), *options, *calibration, "--no-validate", "--out", run.bundle(side))
    needs = ("checkpoint.wide" if of == "wide" else "checkpoint",)
    return Step(f"build.{side}", made, limit_s, least_s, needs=needs, makes=run.bundle(side))


def full_build(run: GpuRun, precision: str) -> Step:
    step = build(run, precision, "full", "--precision", precision)
    return replace(step, limit_s=540, least_s=250) if precision == "fp8" else step


def stages(run: GpuRun, side: str, slots: int = 1) -> Step:
    name = f"stages.{side}" if slots == 1 else f"stages.{side}.{slots}"
    return of_bundle(run, side, cells(run, name, slots, run.pplex("bench", "stages", run.bundle(side))))


def rest(run: GpuRun, side: str) -> Iterator[Step]:
    """The other checks and measurements of a bundle."""
    bundle, device = run.bundle(side), run.command_device
    of = partial(of_bundle, run, side)
    frame = run.pplex("bench", "frame", bundle, "--device", device, "--sessions", 1, "--frames", 300, "--json")
    yield of(Step(f"frame.{side}", frame, 200, 60, json=True))
    speak = of(Step(f"speak.{side}", run.probe("speak", bundle, device, WAV), 200, 60, json=True))
    yield replace(speak, lacks=speak.lacks or run.lacks_values)
    yield replace(validate(run, side, "full"), lacks=run.lacks_provider or run.lacks_values)
    priming = run.pplex("bench", "priming", bundle, "--device", device, "--json")
    yield of(Step(f"priming.{side}", priming, 200, 60, json=True))


def validate(run: GpuRun, side: str, of: str) -> Step:
    sections = ("--only", "graphs", "--only", "drift", "--frames", 64, "--device", run.command_device, "--json")
    held = run.pplex("validate", run.bundle(side), "--reference", run.checkpoint(of), *sections)
    checkpoint = "checkpoint.wide" if of == "wide" else "checkpoint"
    return Step(f"validate.{side}", held, 500, 150, needs=(f"build.{side}", checkpoint), json=True)


def of_bundle(run: GpuRun, side: str, step: Step) -> Step:
    lacks = lacks_precision(run, side) or run.lacks_provider
    return replace(step, needs=(f"build.{side}", *step.needs), lacks=lacks)


def lacks_precision(run: GpuRun, side: str) -> str | None:
    """Why a rehearsal cannot run a bundle's precision."""
    if (side, run.device) == ("bf16", "cpu"):
        return "ONNX Runtime does not compute in bf16 on the processor"
    if (side, run.device, run.size) == ("int8", "stand-in", "tiny"):
        return (
            "the tiny checkpoint's columns are too short for int8 on ONNX Runtime's CUDA provider: choose --size small"
        )
    return None


def pair(
    run: GpuRun,
    name: str,
    variants: Sequence[Sequence[object]],
    graphs: Sequence[str],
    slots: Sequence[int],
    needs: Sequence[str],
    contexts: int = 1,
    least_s: float = 0.0,
) -> Step:
    """Variants of `graphs` that take turns, 30 s for each number of slots. The first variant is what others compare with."""
    seconds, out = run.pair_seconds / len(graphs) / contexts, run.out(f"ab.{name}")
    words = [word for graph in graphs for word in ("--graph", graph)]
    words += [word for count in slots for word in ("--slots", str(count))]
    words += [str(word) for variant in variants for word in ("--variant", *variant)]
    options = ("--device", run.command_device, "--contexts", contexts, "--seconds", seconds, "--out", out)
    took_s = least_s or 60 + run.pair_seconds * len(slots)  # both loads, and the pairs
    builds = tuple(f"build.{side}" for side in needs)
    lacks = run.lacks_provider if run.device != "cpu" else "it compares settings of ONNX Runtime on a GPU"
    return Step(
        f"ab.{name}", run.script("gpu_pairs.py", *words, *options), 2 * took_s, took_s, builds, (), lacks, out=out
    )


def of_checkpoint(
    run: GpuRun, name: str, what: str, *options: object, slots: int = 1, wide: bool = False, least_s: float = 0.0
) -> Step:
    """A measurement of torch or moshi at a checkpoint's sizes."""
    needs, size = (("checkpoint.wide",), "wide") if wide else (("checkpoint",), "full")
    step = cells(run, name, slots, pplex("bench", what, run.checkpoint(size), *options))
    # moshi and torch bring CUDA's own libraries, which the stand-in cannot replace.
    lacks = run.lacks_gpu if run.device == "stand-in" or "graphs" in options else None
    return replace(step, needs=needs, lacks=lacks, least_s=least_s or step.least_s)


def cells(run: GpuRun, name: str, slots: int, command: tuple[str, ...]) -> Step:
    """A measurement of conversations of several lengths. A later call resumes it."""
    options = (*run.lengths(slots), "--device", run.command_device, "--out", str(run.out(name)))
    return Step(name, (*command, *options), 400, 100 if slots == 1 else 150, out=run.out(name))
