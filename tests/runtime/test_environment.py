"""Environment variables that are set for libraries, and those of the operator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pplex.runtime.environment import HUB_TELEMETRY, ORT_TELEMETRY, disable_telemetry, temporary_cache

VARIABLE, OTHER = "PPLEX_TEST_CACHE", "PPLEX_TEST_OTHER"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, OTHER, ORT_TELEMETRY, HUB_TELEMETRY):
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)


@pytest.mark.parametrize("module", ["runtime", "cli", "server.client", "export", "engines.plan", "validate.report"])
def test_every_package_turns_telemetry_off_as_it_is_imported(module: str) -> None:
    code = (
        f"import os, pplex.{module}, pplex.runtime; print(os.environ['{ORT_TELEMETRY}'], os.environ['{HUB_TELEMETRY}'])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1 1\n"


@pytest.mark.parametrize("given, becomes", [(None, "1"), ("", "1"), ("1", "1"), ("0", "0")])
def test_telemetry_setting_of_the_operator_is_kept(
    given: str | None, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv(ORT_TELEMETRY, given)
    disable_telemetry()
    assert (os.environ[ORT_TELEMETRY], os.environ[HUB_TELEMETRY]) == (becomes, "1")


@pytest.mark.parametrize("given, stopped", [(None, True), ("0", False)])
def test_a_library_imported_before_sends_no_later_events(
    given: str | None, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    library = type(sys)("onnxruntime")
    library.disable_telemetry_events = lambda: calls.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    if given is not None:
        monkeypatch.setenv(ORT_TELEMETRY, given)
    disable_telemetry()
    assert bool(calls) == stopped


def test_a_temporary_cache_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OTHER, "before")
    with temporary_cache(VARIABLE, **{OTHER: "during"}):
        folder = Path(os.environ[VARIABLE])
        (folder / "kept").touch()
        assert os.environ[OTHER] == "during"
    assert not folder.exists() and VARIABLE not in os.environ and os.environ[OTHER] == "before"


def test_an_operators_cache_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with temporary_cache(VARIABLE, **{OTHER: "during"}):
        assert os.environ[VARIABLE] == str(tmp_path) and OTHER not in os.environ
    assert tmp_path.is_dir()
