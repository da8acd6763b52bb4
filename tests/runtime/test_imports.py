"""Libraries that running, serving and --help must not import, checked in new interpreters."""

import json
import subprocess
import sys

import pytest
from folders import TINY

from pplex.runtime.bundle import Bundle

EXPORT_ONLY = {"torch", "onnx", "onnxscript", "onnx_ir"}
SLOW = {"onnxruntime", "scipy"}
GPU_ONLY = {"cuda", "tensorrt", "tensorrt_rtx"}

CONVERSATION = """
import sys
import numpy as np
from pplex.runtime.session import Runtime
runtime = Runtime.load(sys.argv[1], slots=2, device="cpu")
for voice in ("NATF0", sys.argv[2]):
    session = runtime.open(voice, "Hello there", seed=1)
    assert session.step(np.zeros(1920, np.float32)).pcm.shape == (1920,)
"""
EVERY_MODULE = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
"""
EVERY_HELP = """
from pplex.cli import main
def show(command, path=()):
    main([*path, "--help"], standalone_mode=False)
    for name, child in getattr(command, "commands", {}).items():
        show(child, (*path, name))
show(main)
"""
REPORT = """
import json, sys
print()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imported_by(code: str, *arguments: str) -> set[str]:
    """Top-level names of all modules in a fresh interpreter after it runs `code`."""
    command = [sys.executable, "-P", "-c", code + REPORT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_imported_by_finds_an_import() -> None:
    assert "onnx" in imported_by("import onnx.helper")


@pytest.mark.slow
def test_a_conversation_needs_no_torch_and_no_onnx(tiny_bundle: Bundle) -> None:
    wav = str(TINY / "checkpoint/voices/synthetic.wav")
    imported = imported_by(CONVERSATION, str(tiny_bundle.folder), wav)
    assert "onnxruntime" in imported
    assert not imported & (EXPORT_ONLY | GPU_ONLY)


@pytest.mark.parametrize("package", ["pplex.runtime", "pplex.server"])
def test_no_module_imports_torch_or_onnx(package: str) -> None:
    imported = imported_by(EVERY_MODULE, package)
    assert "pplex" in imported
    assert not imported & (EXPORT_ONLY | GPU_ONLY)


def test_bench_and_validate_import_no_torch_and_no_onnx() -> None:
    modules = ", ".join(f"pplex.bench.{name}" for name in ("frame", "host", "load", "priming", "soak"))
    imported = imported_by(f"import {modules}")
    assert "pplex" in imported
    assert not imported & (EXPORT_ONLY | GPU_ONLY)


def test_help_of_every_command_imports_nothing_slow() -> None:
    imported = imported_by(EVERY_HELP)
    assert "click" in imported
    assert not imported & (EXPORT_ONLY | GPU_ONLY | SLOW)
