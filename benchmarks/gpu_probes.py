"""Commands for the steps of benchmarks/gpu.py that `pplex-export` does not have. Each runs in its own process.

python gpu_probes.py machine DEVICE            print hardware and software as JSON; exit code 1 if the device does not work
python gpu_probes.py speak BUNDLE DEVICE WAV   print level and text of the agent's answer as JSON; exit code 1 if silent
python gpu_probes.py tests OUT ARGUMENT...     run pytest, write each outcome to OUT at once; exit code 77 if all are skipped
python gpu_probes.py candidates COUNT ARGUMENT...   run pplex-export with another number of TopK's candidates in its graphs
"""

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

PACKAGES = (
    "numpy", "torch", "triton", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13",
    "cuda-bindings", "moshi", "sphn", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime",
)  # fmt: skip
QUERIED = (
    "name,driver_version,compute_cap,memory.total,memory.used,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.limit,ecc.mode.current"
)
SKIPS = 77


def machine(device: str) -> int:
    looked = {
        "nvidia-smi": _gpus,
        "cuda": _cuda,
        "torch": _torch,
        "onnxruntime": _onnxruntime,
        "tensorrt": lambda: str(importlib.import_module("tensorrt").__version__),
        "tensorrt_rtx": _tensorrt_rtx,
        "packages": lambda: {name: version for name in PACKAGES if (version := _version(name))},
        "host": _host,
    }
    found = {name: _or_error(look) for name, look in looked.items()}
    print(json.dumps(found, indent=1))
    silent = [str(found[name]) for name in ("cuda", "torch") if isinstance(found[name], str)]
    if device == "cpu" or len(silent) < 2:
        return 0
    print("\n".join(silent), file=sys.stderr)
    return 1


def _or_error(look: Callable[[], Any]) -> Any:
    """The result of `look`, or its error as text: a library may raise anything on an unsuitable machine."""
    try:
        return look()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]


def _gpus() -> Any:
    command = ["nvidia-smi", f"--query-gpu={QUERIED}", "--format=csv,noheader"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [dict(zip(QUERIED.split(","), line.split(", "), strict=True)) for line in printed.strip().splitlines()]


def _cuda() -> Any:
    from pplex.runtime.cuda_device import CudaDevice

    device = CudaDevice()
    return {"name": device.gpu.name, "sm": device.gpu.sm, "free_nbytes": device.free_nbytes()}


def _torch() -> Any:
    torch = importlib.import_module("torch")
    properties = torch.cuda.get_device_properties(0)  # raises without a GPU
    return {"cuda": torch.version.cuda, "name": properties.name, "multiprocessors": properties.multi_processor_count}


def _onnxruntime() -> Any:
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    return {"version": onnxruntime.__version__, "providers": providers, "build": onnxruntime.get_build_info()}


def _tensorrt_rtx() -> Any:
    trt = importlib.import_module("tensorrt_rtx")
    return {"version": str(trt.__version__), "compute capabilities": list(trt.ComputeCapability.__members__)}


def _host() -> Any:
    memory_nbytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free_nbytes = shutil.disk_usage(".").free
    return {
        "python": platform.python_version(), "kernel": platform.release(), "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_nbytes / 1e9, 1), "free_disk_gb": round(free_nbytes / 1e9, 1),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def speak(bundle: str, device: str, wav: str) -> int:
    """Print the level and the text of the agent's answer; fail if it is too quiet or has samples that are not finite."""
    import numpy as np

    from pplex.runtime.audio import read_audio
    from pplex.runtime.offline import OfflineSettings, run_offline

    with tempfile.TemporaryDirectory() as folder:
        out, text = Path(folder, "agent.wav"), Path(folder, "agent.json")
        report = run_offline(
            Path(bundle), wav, str(out), str(text), OfflineSettings("NATF2", "Hello there", 42), None, device
        )
        pcm = read_audio(out)
        pieces = json.loads(text.read_text())
    level_db = round(float(20 * np.log10(np.sqrt(np.mean(np.square(pcm))) + 1e-9)), 1)
    spoken = bool(np.isfinite(pcm).all()) and level_db > -60
    print(json.dumps({"speaks": spoken, "level_db": level_db, "text": pieces[:50], **report.to_dict()}, indent=1))
    return int(not spoken)


class Outcomes:
    """A pytest plugin that writes each outcome at once, so a test that crashes the process is in the file, too."""

    def __init__(self, path: Path):
        self._path, self.tests = path, dict[str, dict[str, Any]]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._note(nodeid, "started, then the process crashed", "")

    def pytest_collectreport(self, report: "pytest.CollectReport") -> None:
        if report.failed:
            self._note(report.nodeid, "cannot be collected", report.longreprtext.strip().splitlines()[-1])

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        if report.when == "call" or not report.passed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else crash.message if crash else ""
            self._note(report.nodeid, report.outcome, said, round(report.duration, 2))

    def _note(self, test: str, outcome: str, said: str, seconds: float = 0.0) -> None:
        self.tests[test] = {"outcome": outcome, "said": said[:2000], "seconds": seconds}
        self._path.write_text(json.dumps({"tests": self.tests}))


def tests(out: str, *arguments: str) -> int:
    import pytest

    outcomes = Outcomes(Path(out))
    # Other installed plugins must not change the tests, and a library's warning is not an engine's failure.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ("-p", "no:cacheprovider", "-W", "default", "-rA", "-vv")
    code = int(pytest.main([*arguments, *options], plugins=[outcomes]))
    skipped = [test["said"] for test in outcomes.tests.values() if test["outcome"] == "skipped"]
    if code == 0 and len(skipped) == len(outcomes.tests):
        print(skipped[0] if skipped else "no test matches", file=sys.stderr)
        return SKIPS
    return code


def candidates(count: str, *arguments: str) -> int:
    from pplex.cli import main
    from pplex.export import layers

    assert isinstance(layers.MAX_CANDIDATES, int)  # what a graph is traced with
    layers.MAX_CANDIDATES = int(count)
    main(arguments)
    return 0


PROBES: dict[str, Callable[..., int]] = {"machine": machine, "speak": speak, "tests": tests, "candidates": candidates}

if __name__ == "__main__":
    sys.exit(PROBES[sys.argv[1]](*sys.argv[2:]))
