"""Libraries that crash, hang or print too much, probed in a process of their own."""

import pytest

from pplex.doctor import probe as module
from pplex.doctor.findings import WARNING, Finding, guarded
from pplex.doctor.probe import Probe, first_line, probe


def test_the_found_value_is_returned() -> None:
    assert probe("print('a library talks'); found = [*arguments, 1]", "a") == Probe(value=["a", 1])


def test_an_error_and_a_missing_module_are_distinguished() -> None:
    assert probe("raise OSError('no libsndfile')") == Probe(error="OSError: no libsndfile")
    assert probe("import no_such_module").missing == "no_such_module"
    assert probe("import sys; sys.exit(3)").error == "SystemExit: 3"


def test_a_crash_is_reported_by_its_signal() -> None:
    assert probe("import ctypes; ctypes.string_at(0)").error == "it crashes (SIGSEGV)"
    assert probe("import os; os.abort()").error == "it crashes (SIGABRT)"


def test_a_silent_exit_is_reported() -> None:
    assert probe("import os; os._exit(0)").error == "Python exits with code 0: no message"


def test_a_hanging_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 1)
    assert probe("import time; time.sleep(100)").error == "no answer within 1 s"


def test_a_python_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/python")
    assert "Python cannot be started" in (probe("found = 1").error or "")


def test_current_folder_does_not_shadow_libraries(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("json.py", "w") as file:
        file.write("raise ImportError('not this one')")
    assert probe("import json; found = 1").value == 1


def test_a_long_error_is_cut_to_its_first_line() -> None:
    assert first_line("\n\nIMPORTANT\nread this") == "IMPORTANT"
    assert len(first_line("x" * 1000)) < 300


def test_a_failing_check_becomes_a_finding() -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("of ours")

    (finding,) = guarded("disk", broken)
    assert (finding.check, finding.level, finding.stops) == ("disk", WARNING, ())
    assert "ZeroDivisionError: of ours" in finding.fact and "doctor --json" in str(finding.advice)
