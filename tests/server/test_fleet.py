"""Real servers and the simulated fleet do the same with the same clients (benchmarks/fleet_run.py, docs/fleet.md)."""

import asyncio
from pathlib import Path

import pytest
from fleet_run import Comparison, Setting, compare

from pplex.fleet.demand import Arrival
from pplex.fleet.rules import Rules
from pplex.runtime.bundle import Bundle

COUNTS = ("asked", "at_once", "waited", "timed_out", "sent_away", "refused", "failures", "cut")


def run(bundle: Bundle, folder: Path, setting: Setting) -> Comparison:
    return asyncio.run(compare(bundle.folder, setting, folder / "servers.log"))


@pytest.mark.parametrize(
    "setting, counts",
    [
        pytest.param(
            # Two in slots, two in queues, one refused. The killed server cuts one and sends one away; both come back, find
            # the other server full and are refused. Its client in the queue gets the slot.
            Setting(
                2,
                Rules(slots=1, queue=1, return_s=0.5),
                (Arrival(0, 20), Arrival(1, 12), Arrival(2, 1), Arrival(3, 1), Arrival(4, 1)),
                seconds=60,
                kill_s=8,
            ),
            (7, 2, 1, 0, 1, 3, 1, {"failure": 1, "drain": 0}),
            id="killed",
        ),
        pytest.param(
            # One gives up in the queue; another waits for less than the limit.
            Setting(
                2,
                Rules(slots=1, queue=2, queue_s=4),
                (Arrival(0, 10), Arrival(1, 14), Arrival(2, 1), Arrival(8.5, 1)),
                seconds=60,
            ),
            (4, 2, 1, 1, 0, 0, 0, {"failure": 0, "drain": 0}),
            id="queue",
        ),
        pytest.param(
            # The cut client opens anew at the other server, and says the rest there.
            Setting(2, Rules(slots=1, queue=0, return_s=0.5), (Arrival(0, 12),), seconds=40, kill_s=5),
            (2, 2, 0, 0, 0, 0, 1, {"failure": 1, "drain": 0}),
            id="opened anew",
        ),
    ],
)
def test_each_client_meets_the_same_fate(tiny_bundle: Bundle, tmp_path: Path, setting: Setting, counts: tuple) -> None:
    found = run(tiny_bundle, tmp_path, setting)
    assert not found.unexpected
    real, simulated = ({name: getattr(side, name) for name in COUNTS} for side in (found.real, found.simulated))
    assert real == simulated == dict(zip(COUNTS, counts, strict=True))
    assert found.real.talk_s == pytest.approx(found.simulated.talk_s, abs=5)
    assert all(seconds < 10 for seconds in found.away_s), "from the cut until the client talks again"
