"""Loads in new processes: their report, the files that the first one caches, and failures."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pplex.bench import load
from pplex.bench.load import bench_load
from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import EngineError

MOMENTS = ("imported", "loaded", "opened", "first spoken frame")


def test_the_command_reports_the_first_load_and_those_after_it(tiny_bundle: Bundle) -> None:
    arguments = ["bench", "load", str(tiny_bundle.folder), "--runs", "1", "--slots", "2", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    for which in ("first load", "later loads"):
        medians = [report["timings"][f"{which}: {moment}"]["median_ms"] for moment in MOMENTS]
        assert 0 < medians[0] < medians[1] < medians[2] < medians[3]
        figures = {name: value for name, value in report["figures"].items() if name.startswith(which)}
        peak, over = figures[f"{which}: peak MB"], figures[f"{which}: peak / weights"]
        assert peak > 10 and over == pytest.approx(peak / report["figures"]["MB of weights"], rel=0.01)
        assert all(value is None or 0 < value <= peak for name, value in figures.items() if "after loading" in name)
    assert len(report["timings"]) == 8
    nbytes = {name: entry["nbytes"] for name, entry in tiny_bundle.manifest["files"].items()}
    weights = sum(n for name, n in nbytes.items() if name.endswith((".onnx", ".data")))
    assert report["figures"]["MB of weights"] == round(weights / 1e6, 1)
    assert report["figures"]["MB cached by the first load"] == 0  # float32 weights are used directly


def test_files_cached_by_the_first_load_are_counted_separately(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = tmp_path / "caches"
    seconds = iter([9.0, 2.0, 4.0, 9.0, 2.0, 4.0])

    def measured(options: load.LoadOptions) -> dict[str, Any]:
        caches.mkdir(exist_ok=True)
        (caches / "new.cache").write_bytes(bytes(3_000_000))
        (caches / "old.cache").unlink(missing_ok=True)
        memory = {"anonymous_mb": None, "mapped_mb": None, "peak_mb": 20.0}
        return {**dict.fromkeys(load.MOMENTS.values(), next(seconds)), "device": "cpu", **memory}

    monkeypatch.setattr(load, "_measured", measured)
    monkeypatch.setattr(load, "weights_mb", lambda bundle: 10.0)
    caches.mkdir()
    (caches / "old.cache").write_bytes(bytes(3_000_000))  # of another processor: the first load replaces it
    made, there = (bench_load(tmp_path, runs=2) for _ in range(2))
    assert (made.figures["MB cached by earlier loads"], made.figures["MB cached by the first load"]) == (3, 3)
    assert (there.figures["MB cached by earlier loads"], there.figures["MB cached by the first load"]) == (3, 0)
    assert made.timings["first load: loaded"].median_ms == 9000
    assert made.timings["later loads: loaded"].median_ms == 3000
    assert made.figures["later loads: peak / weights"] == 2
    assert made.figures["later loads: MB of private memory after loading"] is None


def test_our_errors_are_passed_on_and_other_exits_are_reported(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(main, ["bench", "load", str(tmp_path)])
    assert result.exit_code == 1 and "Error: " in result.stderr and "is not a bundle" in result.stderr
    killed = subprocess.CompletedProcess[str]([], -9, "", "one\ntwo\n")
    monkeypatch.setattr(load.subprocess, "run", lambda *arguments, **options: killed)
    with pytest.raises(EngineError, match=r"signal 9.*memory(?s:.*)two"):
        bench_load(tiny_bundle.folder)
