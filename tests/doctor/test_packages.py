"""Packages that are missing, empty, broken or old: folders on PYTHONPATH that come before the real ones."""

import platform
import sys
from pathlib import Path

import pytest

from pplex.doctor import packages, requirements
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.packages import check_packages, check_python
from pplex.doctor.probe import Probe

MISSING = "raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
BASE = Question("run")


class Shadows:
    """Modules that replace installed ones, in every process that this test starts."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self._folder = folder
        patch.setenv("PYTHONPATH", str(folder))

    def module(self, name: str, code: str) -> None:
        (self._folder / name).mkdir()
        (self._folder / name / "__init__.py").write_text(code)

    def missing(self, *names: str) -> None:
        for name in names:
            self.module(name, MISSING.format(name=name))


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shadows:
    return Shadows(tmp_path, monkeypatch)


def problems(question: Question) -> list[Finding]:
    return [finding for finding in check_packages(question) if finding.level != OK]


def test_working_packages_are_listed_with_their_versions() -> None:
    (finding,) = check_packages(BASE)
    assert (finding.level, finding.stops) == (OK, ())
    assert "numpy" in finding.fact and set(finding.details["numpy"]) == {"installed", "needed", "tested"}


def test_cpu_extra_alone_is_enough(shadows: Shadows) -> None:
    shadows.missing("aiohttp", "av", "cryptography", "prometheus_client", "uvloop")
    assert problems(BASE) == []
    (finding,) = problems(Question("serve"))
    assert finding.fact == ("Not installed: aiohttp, av, cryptography, prometheus_client, uvloop (only for serve).")
    assert (finding.advice, finding.stops) == ("pip install 'pplex-export[serve]'", ("serve",))


def test_without_uvloop_serving_works(shadows: Shadows) -> None:
    shadows.missing("uvloop")
    (finding,) = problems(Question("serve"))
    assert (finding.level, finding.stops) == (WARNING, ())


def test_a_broken_package_is_named_once_with_its_dependants(shadows: Shadows) -> None:
    shadows.module("numpy", "raise ImportError('libopenblas.so: cannot open shared object file')")
    (finding,) = problems(BASE)
    assert (finding.level, finding.stops) == (PROBLEM, ("build", "run", "serve"))
    assert "libopenblas.so: cannot open shared object file" in finding.fact
    assert "pyloudnorm" in finding.fact and "soxr" in finding.fact
    assert finding.advice == "Reinstall it: pip install --force-reinstall 'numpy>=2.3'"


def test_soundfile_without_libsndfile_is_reported(shadows: Shadows) -> None:
    shadows.module("soundfile", "raise OSError('sndfile library not found')")
    (finding,) = problems(BASE)
    assert "OSError: sndfile library not found" in finding.fact and "libsndfile1" in str(finding.advice)


def test_a_package_that_crashes_does_not_hide_the_others(shadows: Shadows) -> None:
    shadows.module("soxr", "import os; os.abort()")
    (finding,) = problems(BASE)
    assert "soxr" in finding.fact and "it crashes (SIGABRT)" in finding.fact


def test_a_folder_without_code_is_not_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emptied_here").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert packages.import_all(["emptied_here"])["emptied_here"].error == (
        "ImportError: its folder exists but contains no code"
    )


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks every package without importing it."""
    monkeypatch.setattr(packages, "import_all", lambda modules: dict.fromkeys(modules, Probe()))


@pytest.mark.usefixtures("importable")
def test_old_and_untested_versions_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = requirements.installed
    monkeypatch.setattr(
        requirements, "installed", lambda name: {"numpy": "1.26.4", "tqdm": "5.0"}.get(name, real(name))
    )
    old, sound = check_packages(BASE)
    assert (old.level, old.fact) == (PROBLEM, "numpy 1.26.4 is installed, >=2.3 is needed.")
    assert sound.level == OK and f"The tests ran with tqdm {requirements.locked_versions()['tqdm']}." in sound.fact


@pytest.mark.usefixtures("importable")
def test_missing_lock_files_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "LOCKS", tmp_path)
    (finding,) = check_packages(BASE)
    assert (finding.level, "not available for comparison" in finding.fact) == (OK, True)


def test_an_untested_python_or_system_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    (finding,) = check_python(BASE)
    assert (finding.level, finding.stops) == (WARNING, ())
    monkeypatch.undo()
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    (finding,) = check_python(BASE)
    assert "3.11, 3.12 and 3.13" in str(finding.advice)
