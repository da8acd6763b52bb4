"""GPUs, the driver and the libraries of engines, with a stand-in for the driver and the real ONNX Runtime."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pplex.doctor import engines
from pplex.doctor.driver import Driver, ask_driver
from pplex.doctor.engines import CUDA
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import Probe
from pplex.runtime.gpus import GPUS, ONNXRUNTIME_SM, TENSORRT, TENSORRT_RTX, FoundGpu

SOURCE = Path(__file__).with_name("libcuda.c")
WITH_CUDA = Path(__file__).parents[2] / ".venv/cuda"  # from `make test`: ONNX Runtime for GPUs without CUDA's libraries
ORT = Probe({"version": "1.31.1", "providers": [CUDA, "CPUExecutionProvider"], "cuda": None})
CPU_ORT = Probe({"version": "1.31.1", "providers": ["CPUExecutionProvider"], "cuda": None})


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stand-in for libcuda.so.1."""
    if shutil.which("cc") is None:
        pytest.skip("cc, which builds the stand-in for the driver, is not installed: apt-get install gcc libc6-dev")
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", SOURCE], check=True)
    return folder


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A driver with a GPU; tests change its answers through environment variables."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("STAND_IN_GPU", "NVIDIA GeForce RTX 4090")
    return monkeypatch


def gpu_of(name: str, cuda: tuple[int, int] = (13, 0)) -> Driver:
    gpu = GPUS[name]
    return Driver((FoundGpu(f"NVIDIA {gpu.title}", gpu.sm, gpu.memory_nbytes or 0),), cuda, "580.65.06")


def first_problem(findings: list[Finding]) -> Finding:
    return next(finding for finding in findings if finding.level != OK)


class TestDriver:
    def test_describes_its_gpu(self, driver: pytest.MonkeyPatch) -> None:
        found = ask_driver()
        assert (found.gpus, found.cuda) == ((FoundGpu("NVIDIA GeForce RTX 4090", 89, 24 * 10**9),), (13, 0))
        (finding,) = engines.check_gpu(Question(), found, used=True)
        assert finding.level == OK and "sm_89, 24.0 GB" in finding.fact and "TensorRT-RTX" in finding.fact

    @pytest.mark.parametrize("status, advice", [("100", "--gpus all"), ("803", "restart"), ("1", "nvidia-smi")])
    def test_a_refusing_driver_says_what_to_do(self, driver: pytest.MonkeyPatch, status: str, advice: str) -> None:
        driver.setenv("STAND_IN_STATUS", status)
        (finding,) = engines.check_gpu(Question("run", device="cuda"), ask_driver(), used=True)
        assert (finding.level, finding.stops) == (PROBLEM, ("run",))
        assert status in finding.fact and advice in str(finding.advice)

    def test_a_broken_library_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "libcuda.so.1").write_bytes(b"")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        (finding,) = engines.check_gpu(Question(), ask_driver(), used=False)
        assert finding.level == WARNING and "file too short" in finding.fact

    def test_a_missing_driver_is_fine(self) -> None:
        none = Driver(error="No NVIDIA GPU and no driver were found.")
        (finding,) = engines.check_gpu(Question(), none, used=False)
        assert (finding.level, finding.advice) == (OK, None)
        (finding,) = engines.check_gpu(Question("build", gpu="local"), none, used=False)
        assert finding.stops == ("build",) and "--gpu local" in str(finding.advice)

    def test_a_driver_too_old_for_cuda_13_is_a_problem_only_if_used(self) -> None:
        old = gpu_of("rtx-4090", cuda=(12, 8))
        used = first_problem(list(engines.check_gpu(Question("serve"), old, used=True)))
        assert (used.level, used.stops) == (PROBLEM, ("serve",)) and "580" in str(used.advice)
        for question, is_used in ((Question("serve"), False), (Question("serve", device="cpu"), True)):
            unused = first_problem(list(engines.check_gpu(question, old, used=is_used)))
            assert (unused.level, unused.stops) == (WARNING, ())


class TestKernels:
    @pytest.mark.parametrize(
        "machine, name, runs",
        [
            ("x86_64", "h200", True), ("x86_64", "rtx-5090", True), ("x86_64", "t4", True), ("aarch64", "dgx-spark", True),
            ("x86_64", "b200", False), ("x86_64", "dgx-spark", False), ("aarch64", "jetson-orin", False),
            ("aarch64", "jetson-thor", False), ("aarch64", "a100", False), ("riscv64", "h200", False),
        ],
    )  # fmt: skip
    def test_depend_on_gpu_and_processor(
        self, monkeypatch: pytest.MonkeyPatch, machine: str, name: str, runs: bool
    ) -> None:
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(engines, "probe", lambda code: Probe(True))
        (finding,) = engines.check_cuda(Question("run"), ORT, gpu_of(name))
        assert (finding.level == OK) == runs and (finding.stops == ()) == runs
        if not runs:
            assert f"no kernels for sm_{GPUS[name].sm}" in finding.fact and "--gpu local" in str(finding.advice)

    def test_the_processor_needs_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "probe", lambda code: Probe(True))
        (finding,) = engines.check_cuda(Question("run", device="cpu"), ORT, gpu_of("b200"))
        assert finding.stops == ()

    def test_cuda_extra_is_advised_only_for_gpus_with_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        (for_h200,) = engines.check_cuda(Question(), CPU_ORT, gpu_of("h200"))
        (for_b200,) = engines.check_cuda(Question(), CPU_ORT, gpu_of("b200"))
        assert "pplex-export[cuda]" in str(for_h200.advice)
        assert "pplex-export[cuda]" not in str(for_b200.advice) and "--gpu local" in str(for_b200.advice)

    def test_every_listed_architecture_is_a_known_gpu_architecture(self) -> None:
        from pplex.runtime.gpus import KNOWN_SM

        assert {sm for known in ONNXRUNTIME_SM.values() for sm in known} <= set(KNOWN_SM)


class TestLibraries:
    def test_installed_onnxruntime_is_described(self) -> None:
        finding = next(iter(engines.check_onnxruntime(Question(), engines.ask_onnxruntime(), needed=True)))
        assert finding.level == OK and "CPUExecutionProvider" in finding.fact

    @pytest.mark.parametrize(
        "code, words",
        [("", "no attribute '__version__'"), ("raise ImportError('x.so: invalid ELF header')", "invalid ELF header")],
    )
    def test_an_emptied_or_broken_onnxruntime_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
    ) -> None:
        (tmp_path / "onnxruntime").mkdir()
        (tmp_path / "onnxruntime/__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        found = engines.ask_onnxruntime()
        (finding,) = engines.check_onnxruntime(Question(), found, needed=True)
        assert (finding.level, finding.stops) == (PROBLEM, ("run", "serve"))
        assert words in finding.fact and "pip install --force-reinstall onnxruntime" in str(finding.advice)
        (unneeded,) = engines.check_onnxruntime(Question(), found, needed=False)
        assert unneeded.stops == ()

    @pytest.mark.skipif(not WITH_CUDA.is_dir(), reason=".venv/cuda has no onnxruntime-gpu: make test installs it there")
    def test_missing_cuda_libraries_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(WITH_CUDA))
        found = engines.ask_onnxruntime()
        if found.error or CUDA not in found.value["providers"] or not found.value["cuda"]:
            pytest.skip(
                "onnxruntime-gpu or what it lacks is other than make test installs: CUDA's libraries may be here"
            )
        problem = first_problem(list(engines.check_cuda(Question("run", device="cuda"), found, Driver())))
        assert ".so" in problem.fact and problem.stops == ("run",) and "cudnn" in str(problem.advice)

    def test_a_gpu_gets_its_kind_of_tensorrt(self) -> None:
        missing = {kind: Probe(error="no", missing=kind.replace("-", "_")) for kind in (TENSORRT_RTX, TENSORRT)}
        rtx, data_center = engines.check_tensorrt(Question(), gpu_of("rtx-4090"), missing)
        assert (rtx.level, data_center.level) == (WARNING, OK) and "pplex-export[rtx]" in str(rtx.advice)
        rtx, data_center = engines.check_tensorrt(Question(), gpu_of("h200"), missing)
        assert (rtx.level, data_center.level) == (OK, WARNING)
        rtx, _ = engines.check_tensorrt(Question("build", gpu="rtx-5090"), Driver(), missing)
        assert (rtx.level, rtx.stops) == (PROBLEM, ("build",))

    def test_a_broken_tensorrt_is_reported(self) -> None:
        broken = {TENSORRT_RTX: Probe(error="OSError: libnvinfer"), TENSORRT: Probe("11.0")}
        rtx, data_center = engines.check_tensorrt(Question(), Driver(), broken)
        assert rtx.level == WARNING and "libnvinfer" in rtx.fact and data_center.level == OK
