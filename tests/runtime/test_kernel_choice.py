"""Which kernels a bundle uses on a processor, and what the user is told."""

from pathlib import Path

import pytest

from pplex import kernels
from pplex.runtime.errors import EngineError
from pplex.runtime.kernel_choice import AUTO, OFF, VARIABLE, Choice, choice

compiled = pytest.mark.skipif(kernels.compiled() is None, reason="our kernels were not compiled: apt-get install g++")


@compiled
def test_the_fastest_level_is_used_or_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    kernel = choice().kernel
    assert kernel is not None and kernel.level == kernel.levels[0] and kernel.levels[-1] == "portable"
    monkeypatch.setenv(VARIABLE, "portable")
    assert choice().kernel == kernel and kernel.level == "portable"
    monkeypatch.setenv(VARIABLE, AUTO)
    assert choice().kernel == kernel and kernel.level == kernel.levels[0]


@compiled
def test_a_level_that_this_processor_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(EngineError, match=r"PPLEX_KERNELS: .*'mmx': choose one of .*portable. Or auto, or off"):
        choice()


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, OFF)
    assert choice() == Choice(None, "PPLEX_KERNELS is off.", wanted=False)


def test_without_a_compiled_library_onnx_runtime_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    found = choice()
    assert found.kernel is None and found.wanted and "no C++ compiler" in str(found.reason)
    monkeypatch.setenv(VARIABLE, "portable")
    with pytest.raises(EngineError, match="are missing"):
        choice()


def test_a_library_for_another_system_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "libkernels.so").write_bytes(b"for another processor")
    monkeypatch.setattr(kernels, "compiled", lambda: tmp_path / "libkernels.so")
    found = choice()
    assert found.kernel is None and "cannot be loaded" in str(found.reason)
