"""`pplex-export doctor`, as a user runs it: its findings are true, its advice helps, and it never crashes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from folders import TINY
from kernel import V2, Kernel

from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import EngineError

COMMAND = [sys.executable, "-P", "-c", "from pplex.cli import main; main()", "doctor"]


def doctor(*arguments: object, code: int = 0, **environment: str) -> dict[str, Any]:
    """The JSON that doctor prints, in a process of its own."""
    command = [*COMMAND, *map(str, arguments), "--json"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def stopping(report: dict[str, Any], aim: str) -> list[dict[str, Any]]:
    return [finding for finding in report["findings"] if aim in finding["stops"]]


def test_this_machine_runs_the_tiny_bundle_and_the_suggested_command(tiny_bundle: Bundle, tmp_path: Path) -> None:
    report = doctor("run", tiny_bundle.folder)
    assert report["stopped"] == {"run": []} and report["passed"]
    assert {finding["check"] for finding in report["findings"]} >= {
        "python",
        "packages",
        "onnxruntime",
        "memory",
        "bundle",
    }
    options = {"user.wav": TINY / "checkpoint/voices/synthetic.wav", "agent.wav": tmp_path / "a.wav"}
    words = [str(options.get(word, word)) for word in report["next"].split()]
    arguments = [*words[1:], "--voice", "none"]
    arguments[arguments.index("agent.json")] = str(tmp_path / "a.json")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


def test_without_a_command_everything_is_checked_and_the_exit_code_is_0() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=True)
    for check in ("python", "packages", "gpu", "tensorrt-rtx", "processors", "memory", "disk", "port", "browser"):
        assert re.search(rf"^(ok|warning|problem) +{check} ", done.stdout, re.MULTILINE), check
    for aim in ("build", "run", "serve"):
        assert re.search(rf"^{aim} +can", done.stdout, re.MULTILINE)
    assert re.search(r"^Next: .+", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 125


def test_doctor_runs_with_a_broken_numpy(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text("raise ImportError('libopenblas.so: cannot open shared object file')")
    report = doctor("serve", tiny_bundle.folder, code=1, PYTHONPATH=str(tmp_path))
    assert "libopenblas.so" in stopping(report, "serve")[0]["fact"]
    assert report["next"] == "Reinstall it: pip install --force-reinstall 'numpy>=2.3'"


def test_doctor_runs_when_a_library_crashes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("import os; os.abort()")
    report = doctor("run", tiny_bundle.folder, code=1, PYTHONPATH=str(tmp_path))
    assert report["stopped"]["run"][0] == "onnxruntime" and "SIGABRT" in stopping(report, "run")[0]["fact"]


def test_too_little_memory_stops_run(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path, monkeypatch)
    kernel.group("/", V2.format(at="/", on="/sys/fs/cgroup"))
    kernel.limits("sys/fs/cgroup", memory_max="150000000", memory_current="100000000")
    result = CliRunner().invoke(main, ["doctor", "run", str(tiny_bundle.folder)])
    assert result.exit_code == 1
    assert re.search(r"run +cannot work yet: memory", result.output)
    assert "50.0 MB free, within the control group's limit of 0.1 GB." in result.output


def test_a_full_disk_stops_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    result = CliRunner().invoke(main, ["doctor", "build", "--out", str(tmp_path / "bundle"), "--precision", "int4"])
    assert result.exit_code == 1 and "has 1.0 MB free" in " ".join(result.output.split())


@pytest.mark.parametrize("gpu, precision", [("rtx-4090", "int8"), ("rtx-4060", "int4")])
def test_it_says_what_a_build_without_a_precision_chooses(gpu: str, precision: str) -> None:
    result = CliRunner().invoke(main, ["doctor", "build", "--precision", "auto", "--gpu", gpu, "--json"])
    report = json.loads(result.stdout)
    (finding,) = (finding for finding in report["findings"] if finding["check"] == "precision")
    assert finding["level"] == "ok" and finding["fact"].startswith(f"--precision auto chooses {precision} for GeForce ")
    assert report["stopped"]["build"] or report["next"].endswith(f"personaplex-7b-v1 --gpu {gpu} --out bundle")


@pytest.mark.parametrize(
    "gpu, level, words", [("t4", "problem", "No precision fits"), ("sm_86", "warning", "not known")]
)
def test_it_says_if_a_build_without_a_precision_would_choose_none(gpu: str, level: str, words: str) -> None:
    report = json.loads(CliRunner().invoke(main, ["doctor", "build", "--gpu", gpu, "--json"]).stdout)
    (finding,) = (finding for finding in report["findings"] if finding["check"] == "precision")
    assert (finding["level"], finding["stops"]) == (level, ["build"] if level == "problem" else [])
    assert words in finding["fact"]


class TestUsage:
    @pytest.mark.parametrize(
        "arguments, words",
        [
            (("fly", "bundle"), "fly is not one of build, run, serve"),
            (("build", "--port", "1"), "--port has no effect on doctor build"),
            (("run", "x", "--hub"), "--hub has no effect on doctor run"),
            (("serve", "--port", "70000"), "70000"),
        ],
    )
    def test_bad_usage_exits_with_2(self, arguments: tuple[str, ...], words: str) -> None:
        result = CliRunner().invoke(main, ["doctor", *arguments])
        assert result.exit_code == 2 and words in result.output

    @pytest.mark.parametrize("option", [("--precision", "fp3"), ("--gpu", "abacus")])
    def test_an_unknown_precision_or_gpu_is_refused(self, option: tuple[str, str]) -> None:
        result = CliRunner().invoke(main, ["doctor", "build", *option])
        assert result.exit_code == 1 and option[1] in result.output


@pytest.mark.parametrize("error", [EngineError("A driver is missing."), ModuleNotFoundError("No torch", name="torch")])
def test_an_error_about_this_machine_names_doctor(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("pplex.engines.plan_report.report_plans", fail)
    result = CliRunner().invoke(main, ["plan"])
    assert result.exit_code == 1 and result.output.rstrip().endswith("To check this machine: pplex-export doctor")


def test_an_error_about_the_input_does_not_name_doctor(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 1 and "doctor" not in result.output
