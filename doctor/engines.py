"""Checks of the libraries that run and compile graphs: ONNX Runtime, CUDA, TensorRT, TensorRT-RTX, and of the GPU."""

import platform
from collections.abc import Iterator
from typing import Any

from pplex.doctor.driver import Driver, to_dict
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question, gigabytes
from pplex.doctor.probe import Probe, first_line, probe
from pplex.doctor.requirements import installed
from pplex.runtime.gpus import ONNXRUNTIME_SM, TENSORRT, TENSORRT_RTX, FoundGpu, Gpu, kind_for, parse_gpu
from pplex.runtime.trt_library import TENSORRT_LIBRARIES

RUNNING = ("run", "serve")
CUDA_NEEDED = (13, 0)  # the driver must support it for onnxruntime-gpu 1.31, cuda-bindings 13, TensorRT-RTX for CUDA 13
CUDA = "CUDAExecutionProvider"
BUILD_LOCAL = "Build engines for this GPU: pplex-export build CHECKPOINT --gpu local --out BUNDLE"
_ONNXRUNTIME = """
import ctypes, os
import onnxruntime as ort
found = {"version": ort.__version__, "providers": ort.get_available_providers(), "cuda": None}
ort.InferenceSession, ort.SessionOptions  # what an empty folder does not have
if "CUDAExecutionProvider" in found["providers"]:
    folder = os.path.join(os.path.dirname(ort.__file__), "capi")
    try:
        ort.preload_dlls()
        for name in ("shared", "cuda"):
            ctypes.CDLL(os.path.join(folder, f"libonnxruntime_providers_{name}.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        found["cuda"] = str(error)
"""
_TENSORRT = "import importlib; found = str(importlib.import_module(arguments[0]).__version__)"
_PURPOSES = {TENSORRT_RTX: "RTX GPUs", TENSORRT: "data center GPUs"}


def ask_onnxruntime() -> Probe:
    """ONNX Runtime's version and providers, and the error if CUDA's libraries do not load."""
    return probe(_ONNXRUNTIME)


def ask_library(kind: str) -> Probe:
    """The version of TensorRT or TensorRT-RTX."""
    return probe(_TENSORRT, TENSORRT_LIBRARIES[kind].module)


def check_onnxruntime(question: Question, ort: Probe, needed: bool) -> Iterator[Finding]:
    """Check that one ONNX Runtime is installed and can be imported. `needed`: a graph has no compiled engine."""
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    stops = _asked(question, RUNNING) if needed else ()  # a build works without it, but skips its validation
    if ort.missing == "onnxruntime":
        advice = "pip install 'pplex-export[cpu]', or [cuda] for an NVIDIA GPU"
        yield Finding("onnxruntime", PROBLEM, "Not installed. It runs all bundles without engines.", advice, stops)
        return
    if ort.error:
        fact = f"ONNX Runtime {gpu or cpu or ''} cannot be used: {first_line(ort.error)}"
        package = "onnxruntime-gpu" if gpu else "onnxruntime"
        cure = f"Reinstall it: pip install --force-reinstall {package}"
        yield Finding("onnxruntime", PROBLEM, fact, "Repair numpy first." if "numpy" in fact else cure, stops)
        return
    if cpu and gpu:
        fact = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed, and overwrite each other's files."
        advice = "Keep one: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'pplex-export[cpu]' or [cuda]"
        yield Finding("onnxruntime", WARNING, fact, advice)
    providers = ort.value["providers"]
    yield Finding("onnxruntime", OK, f"ONNX Runtime {ort.value['version']}: {', '.join(providers)}.", details=ort.value)


def check_gpu(question: Question, driver: Driver, used: bool) -> Iterator[Finding]:
    """Check the GPU, and that its driver is new enough for CUDA 13. `used`: the installed libraries would run on it."""
    stops = _needing_gpu(question)
    if not driver.gpus:
        level = PROBLEM if stops else WARNING if driver.advice else OK
        usual = "" if stops else " Bundles without engines run on the processor."
        options = [name for name, on in (("--device cuda", question.device), ("--gpu local", question.gpu)) if on]
        other = f"Use a machine with an NVIDIA GPU, or leave out {' and '.join(options)}."
        advice = driver.advice or (other if stops else None)
        yield Finding("gpu", level, f"{driver.error}{usual}", advice, stops, to_dict(driver))
        return
    for gpu in driver.gpus:
        yield Finding("gpu", OK, _described(gpu, driver), details=to_dict(driver))
    if driver.cuda < CUDA_NEEDED:
        fact = f"The driver supports CUDA up to {_dotted(driver.cuda)}; the libraries need {_dotted(CUDA_NEEDED)}."
        advice = "Update NVIDIA's driver to release 580 or newer, or use --device cpu."
        stops = (*_unless_cpu(question), *stops) if used else stops
        yield Finding("gpu", PROBLEM if stops else WARNING, fact, advice, tuple(dict.fromkeys(stops)))


def check_cuda(question: Question, ort: Probe, driver: Driver) -> Iterator[Finding]:
    """Check whether ONNX Runtime can use the GPU: provider, CUDA's libraries, bindings, and kernels."""
    has_provider = not ort.error and CUDA in ort.value["providers"]
    yield from _bindings(question, has_provider)
    if ort.error:
        return
    if not has_provider:
        yield from _without_provider(question, driver)
        return
    if ort.value["cuda"]:
        fact = f"CUDA's libraries do not load: {first_line(ort.value['cuda'])}"
        advice = "pip install 'onnxruntime-gpu[cuda,cudnn]', or use --device cpu"
        stops = _unless_cpu(question) if driver.gpus or question.device == "cuda" else ()
        yield Finding("cuda", PROBLEM if stops else WARNING, fact, advice, stops)
    elif driver.gpus:
        yield _kernels(question, driver.gpus[0], ort.value["version"])


def check_tensorrt(question: Question, driver: Driver, looked: dict[str, Probe]) -> Iterator[Finding]:
    """Check whether engines can be built and run: the library for this GPU, and the installed libraries."""
    wanted = wanted_kind(question, driver)
    for kind, library in TENSORRT_LIBRARIES.items():
        stops = ("build",) if kind == wanted and question.gpu and "build" in question.aims else ()
        answer, install = looked[kind], f"pip install 'pplex-export[{library.extra}]'"
        if answer.missing == library.module:
            useful = kind == wanted
            fact = f"Not installed. It compiles engines for {_PURPOSES[kind]}."
            level = PROBLEM if stops else WARNING if useful else OK
            yield Finding(kind, level, fact, install if useful else None, stops)
        elif answer.error:
            fact = f"It cannot be imported: {first_line(answer.error)}"
            yield Finding(
                kind, PROBLEM if stops else WARNING, fact, f"Reinstall it: {install} --force-reinstall", stops
            )
        else:
            runs = " for this GPU" if kind == wanted and driver.gpus else ""
            alone = "; running them needs a GPU" if kind == TENSORRT_RTX and not driver.gpus else ""
            fact = f"{library.module} {answer.value}: compiles engines{runs}{alone}."
            yield Finding(kind, OK, fact, details={"version": answer.value})


def wanted_kind(question: Question, driver: Driver) -> str | None:
    """The kind of engine for the GPU named by --gpu, or for the GPU of this machine."""
    if question.gpu and question.gpu != "local":
        return parse_gpu(question.gpu).kind
    return kind_for(driver.gpus[0].name, driver.gpus[0].sm) if driver.gpus else None


def local_gpu(driver: Driver) -> Gpu | None:
    """The first GPU, as `plan` describes GPUs."""
    if not driver.gpus:
        return None
    gpu = driver.gpus[0]
    return Gpu("local", gpu.name, gpu.sm, gpu.memory_nbytes, kind_for(gpu.name, gpu.sm))


def _without_provider(question: Question, driver: Driver) -> Iterator[Finding]:
    """ONNX Runtime without GPU support: a problem with --device cuda, a warning if a usable GPU is unused."""
    stops = _asked(question, RUNNING) if question.device == "cuda" else ()
    fact = "The installed ONNX Runtime does not support GPUs: bundles without engines run on the processor."
    if stops or any(gpu.sm in _kernels_here() for gpu in driver.gpus):
        advice = "For the GPU: pip uninstall onnxruntime, then pip install 'pplex-export[cuda]'"
        yield Finding("cuda", PROBLEM if stops else WARNING, fact, advice, stops)
    elif driver.gpus:
        fact = (
            f"ONNX Runtime has no kernels for sm_{driver.gpus[0].sm}, so bundles without engines run on the processor."
        )
        yield Finding("cuda", WARNING, fact, BUILD_LOCAL)


def _kernels_here() -> tuple[int, ...]:
    return ONNXRUNTIME_SM.get(platform.machine(), ())


def _bindings(question: Question, has_provider: bool) -> Iterator[Finding]:
    """cuda-bindings, which ONNX graphs on a GPU and `--gpu local` need."""
    stops = _unless_cpu(question) if has_provider else ()
    if question.gpu == "local":
        stops += _asked(question, ("build",))
    answer = probe("import cuda.bindings.runtime; found = True") if stops else Probe()
    if answer.error:
        advice = "pip install 'pplex-export[cuda]', [rtx] or [tensorrt]; or use --device cpu"
        yield Finding("cuda", PROBLEM, f"cuda-bindings cannot be imported: {first_line(answer.error)}", advice, stops)


def _kernels(question: Question, gpu: FoundGpu, version: str) -> Finding:
    known = _kernels_here()
    details: dict[str, Any] = {"kernels": known, "sm": gpu.sm}
    if gpu.sm in known:
        return Finding(
            "cuda", OK, f"CUDA's libraries load, and ONNX Runtime has kernels for sm_{gpu.sm}.", details=details
        )
    listed = ", ".join(f"sm_{sm}" for sm in known) or "no GPU"
    has = f"On {platform.machine()} it has kernels for {listed} only."
    fact = f"onnxruntime-gpu {version} has no kernels for sm_{gpu.sm} ({gpu.name}). {has}"
    advice = f"{BUILD_LOCAL}; or use --device cpu."
    return Finding("cuda", PROBLEM, fact, advice, _unless_cpu(question), details)


def _described(gpu: FoundGpu, driver: Driver) -> str:
    release = f"driver {driver.release}, " if driver.release else ""
    kind = {TENSORRT_RTX: "TensorRT-RTX", TENSORRT: "TensorRT"}[kind_for(gpu.name, gpu.sm)]
    size = gigabytes(gpu.memory_nbytes)
    return f"{gpu.name}, sm_{gpu.sm}, {size}, {release}CUDA {_dotted(driver.cuda)}; engines for it: {kind}."


def _needing_gpu(question: Question) -> tuple[str, ...]:
    running = RUNNING if question.device == "cuda" else ()
    return _asked(question, (*running, *(("build",) if question.gpu == "local" else ())))


def _unless_cpu(question: Question) -> tuple[str, ...]:
    """The commands that fail if ONNX graphs use the GPU by default and cannot run on it."""
    return () if question.device == "cpu" else _asked(question, RUNNING)


def _asked(question: Question, stops: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(aim for aim in stops if aim in question.aims)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
