"""The soak benchmark with few frames: its figures and the faults it finds."""

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pplex.bench.soak import Windows, bench_soak
from pplex.cli import main
from pplex.runtime.arrays import Pcm
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Reply, Session

FRAMES, BETWEEN = 100, 25  # BETWEEN frames lie outside both windows
HELD = "bytes allocated between the windows and not freed"
STEP = Session.step


def figures(bundle: Bundle) -> dict[str, Any]:
    return bench_soak(bundle.folder, FRAMES, window=25, threads=1).figures


def test_windows_fit_an_hour_and_shrink_for_shorter_runs() -> None:
    hour, short, minute = Windows.of(38_000, 1_000), Windows.of(5_000, 1_000), Windows.of(750, 1_000)
    assert (hour.first, hour.early_end, hour.last) == (3_000, 4_000, 37_000)
    assert (short.first, short.early_end, short.last) == (2_000, 3_000, 4_000)
    assert (minute.first, minute.early_end, minute.last) == (189, 376, 563)


def test_the_command_reports_both_windows_memory_and_the_clock(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(
        main, ["bench", "soak", str(tiny_bundle.folder), "--frames", "120", "--threads", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["timings"]) == 4
    assert all(0 < t["median_ms"] <= t["p99_ms"] for t in report["timings"].values())
    found = report["figures"]
    assert found["early window"] == "frames 30 to 60" and found["last window"] == "frames 90 to 120"
    samples = ("samples of the user", "finite samples of the agent", "frames stepped x 1920")
    assert {found[name] for name in samples} == {120 * 1920}
    assert {count for name, count in found.items() if name.startswith("frames counted by the ")} == {120}
    assert found["clock drift in frames"] == 0
    ratios = [value for name, value in found.items() if name.endswith("last window / early window")]
    assert len(ratios) == 3 and all(ratio > 0 for ratio in ratios)
    assert found["resident MB at the end"] is None or found["resident MB at the end"] > 10


def test_too_few_frames_are_refused(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(main, ["bench", "soak", str(tiny_bundle.folder), "--frames", "79"])
    assert result.exit_code == 2 and "79 is not in the range x>=80" in result.output


def test_memory_leaked_by_frames_is_counted(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures(tiny_bundle)[HELD] < 1000 * BETWEEN
    left = []

    def leaking(session: Session, pcm: Pcm) -> Reply:
        left.append(np.zeros(1000, np.uint8))
        return STEP(session, pcm)

    monkeypatch.setattr(Session, "step", leaking)
    assert 1000 * BETWEEN <= figures(tiny_bundle)[HELD] < 3000 * BETWEEN


def test_lost_and_repeated_frames_and_nan_samples_are_drift(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(session: Session, pcm: Pcm) -> Reply:
        if session.frame == 50:
            STEP(session, pcm)
        return STEP(session, pcm)

    def silent(session: Session, pcm: Pcm) -> Reply:
        reply = STEP(session, pcm)
        if session.frame == 50:
            reply.pcm[:] = np.nan
        return reply

    for broken, drift in ((twice, 1), (silent, -1)):
        monkeypatch.setattr(Session, "step", broken)
        assert figures(tiny_bundle)["clock drift in frames"] == drift
