"""What the doctor says about our kernels."""

import pytest

from pplex import kernels
from pplex.doctor.findings import OK, PROBLEM, WARNING, Question
from pplex.doctor.kernels import ask_kernels, check_kernels
from pplex.doctor.probe import Probe
from pplex.runtime.kernel_choice import NOT_COMPILED, OFF, VARIABLE


def finding(answer: Probe) -> tuple[str, str, str, tuple[str, ...]]:
    (found,) = check_kernels(Question(), answer)
    return found.level, found.fact, found.advice or "", found.stops


@pytest.mark.skipif(kernels.compiled() is None, reason="our kernels were not compiled: apt-get install g++")
def test_a_working_kernel_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    level, fact, _, _ = finding(ask_kernels())
    assert level == OK and fact.endswith("use our kernels, with portable instructions.")


def test_a_kernel_that_is_turned_off_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, OFF)
    level, fact, _, _ = finding(ask_kernels())
    assert level == OK and "PPLEX_KERNELS is off. Bundles in int8 and int4 run on ONNX Runtime's own kernels" in fact


def test_a_missing_kernel_is_a_warning_with_the_cure() -> None:
    value = {"level": None, "levels": [], "reason": NOT_COMPILED, "wanted": True, "wrong": None}
    level, fact, advice, stops = finding(Probe(value))
    assert level == WARNING and "pip found no C++ compiler" in fact and "slower" in fact
    assert "apt-get install g++" in advice and stops == ()


def test_a_wrong_choice_stops_run_and_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mmx")
    level, fact, advice, stops = finding(ask_kernels())
    assert level == PROBLEM and "mmx" in fact and "Unset" in advice and stops == ("run", "serve")


def test_a_crash_is_reported() -> None:
    level, fact, _, stops = finding(Probe(error="it crashes (SIGILL)"))
    assert level == WARNING and "SIGILL" in fact and stops == ()
