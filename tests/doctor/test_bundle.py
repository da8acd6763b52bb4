"""Bundles that cannot be read, are damaged, or whose engines do not run here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pplex.doctor.bundle import ask_bundle, check_bundle, check_engines_run
from pplex.doctor.driver import Driver
from pplex.doctor.engines import CUDA
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import Probe
from pplex.runtime.bundle import MANIFEST_FILE, Bundle, manifest_digest
from pplex.runtime.gpus import TENSORRT, TENSORRT_RTX, FoundGpu

CPU_ORT = Probe({"version": "1.31.1", "providers": ["CPUExecutionProvider"], "cuda": None})
CUDA_ORT = Probe({"version": "1.31.1", "providers": [CUDA, "CPUExecutionProvider"], "cuda": None})
RTX_4090 = Driver((FoundGpu("NVIDIA GeForce RTX 4090", 89, 24 * 10**9),), (13, 0))
VERSIONS = {TENSORRT_RTX: Probe("1.7.1.116"), TENSORRT: Probe(error="no", missing="tensorrt")}
# Two capabilities let root read everything. Without them in the bounding set, file modes apply to child processes.
AS_A_USER = """
import ctypes, json, os, sys
from dataclasses import asdict
from pplex.doctor.bundle import ask_bundle, check_bundle
from pplex.doctor.findings import Question
PR_CAPBSET_DROP, CAPABILITIES = 24, (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
if os.getuid() == 0:
    for capability in CAPABILITIES:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
question = Question("run", sys.argv[1])
(finding,) = check_bundle(question, ask_bundle(question))
print(json.dumps(asdict(finding)))
"""


@pytest.fixture
def copied(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle that tests may damage."""
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))


def looked(folder: Path) -> list[Finding]:
    question = Question("run", str(folder))
    return list(check_bundle(question, ask_bundle(question)))


def as_a_user(folder: Path) -> Finding:
    """The finding of a user who, unlike root, may not read everything."""
    command = [sys.executable, "-P", "-c", AS_A_USER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Finding(**json.loads(done.stdout.splitlines()[-1]))


def test_a_complete_bundle_passes(tiny_bundle: Bundle) -> None:
    finding = looked(tiny_bundle.folder)[0]
    assert finding.level == OK and "is complete: mimi_encode fp32" in finding.fact
    assert finding.details["weights"] > 10**6


def test_an_unreadable_folder_is_reported(copied: Path) -> None:
    copied.chmod(0)
    try:
        finding = as_a_user(copied)
    finally:
        copied.chmod(0o755)
    assert finding.level == PROBLEM and "Permission denied" in finding.fact and finding.advice


def test_an_unreadable_file_is_reported(copied: Path) -> None:
    (copied / "temporal.data").chmod(0)
    finding = as_a_user(copied)
    assert finding.level == PROBLEM and "temporal.data cannot be used: Permission denied" in finding.fact
    assert "Give this user the right" in str(finding.advice)


@pytest.mark.parametrize(
    "name, words", [("temporal.data", "temporal.data has 100 bytes"), (MANIFEST_FILE, "cannot be read")]
)
def test_a_truncated_file_is_reported(copied: Path, name: str, words: str) -> None:
    os.truncate(copied / name, 100)
    (finding,) = looked(copied)
    assert (finding.level, finding.stops) == (PROBLEM, ("run",)) and words in finding.fact
    assert "pplex-export build" in str(finding.advice) or "rebuild" in str(finding.advice)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_bundle_is_reported(tmp_path: Path, there: bool) -> None:
    (finding,) = looked(tmp_path if there else tmp_path / "nothing")
    assert finding.level == PROBLEM and "is not a bundle" in finding.fact


def test_a_bundle_is_not_checked_with_a_broken_library(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = looked(tiny_bundle.folder)
    assert (finding.level, finding.stops) == (WARNING, ())


def test_a_bundle_that_failed_validation_is_reported(copied: Path) -> None:
    manifest = json.loads((copied / MANIFEST_FILE).read_text())
    manifest["parity"] = {"checked": True, "passed": False, "frames": 1, "failures": ["drift"], "measures": {}}
    manifest["digest"] = manifest_digest(manifest)
    (copied / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert [finding.level for finding in looked(copied)] == [OK, WARNING]


def state(**changes: Any) -> dict[str, Any]:
    """The state of a bundle whose temporal graph is compiled for a GPU."""
    engine = {
        "kind": TENSORRT_RTX, "gpu": "rtx-4090", "sm": 89, "slots": 4, "made_with": "tensorrt-rtx 1.7.1.116", "file": "",
    } | changes  # fmt: skip
    engines = {"temporal": engine, "depth": {"kind": "onnxruntime"}}
    return {"engines": engines, "on_onnxruntime": ["depth"], "in_bfloat16": []}


def runs(bundle: dict[str, Any], driver: Driver = RTX_4090, ort: Probe = CPU_ORT, **asked: Any) -> Finding | None:
    question = Question(**{"aim": "serve", "slots": 4, **asked})
    return next(check_engines_run(question, bundle, driver, ort, VERSIONS), None)


@pytest.mark.parametrize(
    "changes, asked, words",
    [
        ({"sm": 120, "gpu": "rtx-5090"}, {}, "this GPU (NVIDIA GeForce RTX 4090) is sm_89"),
        ({"made_with": "tensorrt-rtx 1.6.0"}, {}, "1.7.1.116 is installed"),
        ({}, {"slots": 9}, "9 slots are more than the engines were built for"),
        ({"kind": TENSORRT}, {}, "compiled with tensorrt, which cannot be imported"),
        ({}, {"device": "cpu"}, "compiled for sm_89"),
    ],
)
def test_unusable_engines_are_reported(changes: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    finding = runs(state(**changes), **asked)
    assert finding is not None and (finding.level, finding.stops) == (PROBLEM, ("serve",))
    assert words in finding.fact and finding.advice


def test_engines_for_this_gpu_pass() -> None:
    finding = runs(state())
    assert finding is not None and finding.level == OK


def test_engines_without_a_gpu_are_reported() -> None:
    finding = runs(state(), Driver(error="none"))
    assert finding is not None and "this machine has no such GPU" in finding.fact


def test_bf16_needs_a_gpu() -> None:
    graphs = {
        "engines": {"temporal": {"kind": "onnxruntime"}},
        "on_onnxruntime": ["temporal"],
        "in_bfloat16": ["temporal"],
    }
    on_processor = runs(graphs)
    assert on_processor is not None and on_processor.stops == ("serve",) and "on a GPU" in str(on_processor.advice)
    assert runs(graphs, ort=CUDA_ORT) is None
