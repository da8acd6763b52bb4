"""A small fleet of real servers under random arrivals, one of them killed, beside the simulation of the same clients.

    python benchmarks/fleet_run.py demo/bundle --out results.json
    python benchmarks/fleet_run.py demo/bundle --ray --kill 60 --restart 0

Shows how far `pplex-export plan --fleet` can be trusted: docs/fleet.md has the figures. Conversations are seconds long here,
so that a run takes minutes.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import Any

from fleet_clients import Visits, arrive
from fleet_ray import RayServers, running_with_ray
from fleet_servers import Servers, running

from pplex.fleet.demand import Arrival, Demand
from pplex.fleet.rules import Rules, Scaling
from pplex.fleet.scaler import NEVER_S
from pplex.fleet.simulation import replay
from pplex.fleet.tally import Outcome, Tally
from pplex.measure.machine import machine
from pplex.measure.tables import aligned

SEEDS = 100
ROWS = (
    "asked",
    "at_once",
    "waited",
    "timed_out",
    "sent_away",
    "refused",
    "waiting",
    "wait_p50_s",
    "wait_p95_s",
    "failures",
)


@dataclass(frozen=True)
class Setting:
    """What is run. kill_s: when a server is killed, in seconds; restart_s: how much later another one is started.

    seconds: how long clients are counted. ray: by `pplex-export scale`, which restarts a killed server by itself.
    """

    replicas: int
    rules: Rules
    arrivals: tuple[Arrival, ...]
    seconds: float
    kill_s: float | None = None
    restart_s: float | None = None
    seed: int = 0
    ray: bool = False


@dataclass(frozen=True)
class Comparison:
    """The real run and the simulation of the same clients.

    range: of the simulated share that waits, without the lowest and highest 2.5 % of 100 seeds. overhead_s: how much longer
    than the talk a slot is held, on average: priming and goodbye. start_s: from the kill until the new server was ready.
    away_s: from a cut until that client talked again.
    """

    setting: Setting
    real: Outcome
    simulated: Outcome
    range: tuple[float, float]
    overhead_s: float
    start_s: float
    away_s: tuple[float, ...]
    unexpected: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the single arrivals, which the seed gives again."""
        asked = {**asdict(self.setting), "arrivals": len(self.setting.arrivals)}
        return {
            **asdict(self),
            "setting": asked,
            "machine": machine(None, "pplex-export", "aiohttp", "simpy", "onnxruntime"),
        }

    def to_text(self) -> str:
        sides = [("", "real", "simulated")]
        sides += [(name, _text(getattr(self.real, name)), _text(getattr(self.simulated, name))) for name in ROWS]
        sides += [("cut", str(self.real.cut["failure"]), str(self.simulated.cut["failure"]))]
        away = f"back in {max(self.away_s):.1f} s at most" if self.away_s else "nobody was cut"
        low, high = self.range
        times = f"simulated with other seeds: {low:.3g} to {high:.3g} waiting\n"
        times += f"a slot is held {self.overhead_s:.2f} s longer than the talk"
        if self.start_s < NEVER_S:
            times += f", new server after {self.start_s:.1f} s"
        return f"{aligned(sides, right=(1, 2))}\n{times}, {away}, {len(self.unexpected)} unexpected ends"


async def compare(bundle: Path, setting: Setting, log: Path) -> Comparison:
    """Run the servers and the clients, then simulate the same arrivals with the measured times."""
    rules = setting.rules
    limits = ["--slots", str(rules.slots), "--queue", str(rules.queue), "--queue-seconds", str(rules.queue_s)]
    # On a busy machine, a goodbye may come too late. Its slot would be kept for a client that has left.
    limits += ["--resume-seconds", "0", "--device", "cpu", "--threads", "1"]
    start = running_with_ray if setting.ray else running
    async with start(bundle, setting.replicas, limits, log) as servers:
        visits = Visits(servers, rules, Tally(0.0, setting.seconds), random.Random(setting.seed + 1))
        accident = asyncio.create_task(_accident(servers, setting, visits))
        await arrive(visits, setting.arrivals)
        start_s = await accident
    measured = replace(rules, priming_s=mean(visits.overhead_s or [0.0]), start_s=start_s, mtbf_s=None)
    replays = [replayed(setting, measured, seed) for seed in range(SEEDS)]
    return Comparison(
        setting,
        visits.tally.outcome(rules.slots),
        replays[0],
        waiting_range(replays),
        measured.priming_s,
        start_s,
        tuple(visits.away_s),
        tuple(visits.unexpected),
    )


def replayed(setting: Setting, measured: Rules, seed: int) -> Outcome:
    """The simulation of the setting's clients with the measured times."""
    failures = [] if setting.kill_s is None else [(setting.kill_s, 0)]
    fixed = Scaling(setting.replicas, setting.replicas, float(measured.slots))
    return replay(setting.arrivals, measured, fixed, setting.seconds, failures, seed)


def waiting_range(replays: Sequence[Outcome]) -> tuple[float, float]:
    """The shares that waited, without the lowest and the highest 2.5 %."""
    shares = sorted(one.waiting for one in replays)
    cut = round(0.025 * len(shares))
    return shares[cut], shares[-1 - cut]


async def _accident(servers: Servers | RayServers, setting: Setting, visits: Visits) -> float:
    """Kill the oldest server, and start another one later. Returns the seconds from the kill until that one is ready."""
    if setting.kill_s is None:
        return NEVER_S
    await asyncio.sleep(setting.kill_s - visits.now_s)
    killed_s = visits.now_s
    servers.kill(0)
    visits.tally.ended("failure", killed_s)
    if setting.restart_s is None:
        return NEVER_S
    await asyncio.sleep(setting.restart_s)
    await servers.start()
    return visits.now_s - killed_s


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fleet_run.py", description="Compare a real small fleet with its simulation.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--queue", type=int, default=3)
    parser.add_argument("--queue-seconds", type=float, default=4.0)
    parser.add_argument("--arrivals", type=float, default=1.5, help="a second")
    parser.add_argument("--length", type=float, default=6.0, help="mean seconds of a conversation")
    parser.add_argument("--seconds", type=float, default=240.0, help="of arrivals")
    parser.add_argument("--kill", type=float, help="kill the first server after so many seconds")
    parser.add_argument("--restart", type=float, default=5.0, help="start another one so many seconds later")
    parser.add_argument("--balance", choices=["least", "random"], default="least")
    parser.add_argument("--ray", action="store_true", help="run `pplex-export scale`, not processes of `serve`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(given)


def main() -> int:
    asked = arguments()
    rules = Rules(asked.slots, asked.queue, asked.queue_seconds, balance=asked.balance, return_s=1.0)
    clients = Demand(asked.arrivals, asked.length).arrivals(random.Random(asked.seed))
    arrivals = tuple(takewhile(lambda one: one.at_s < asked.seconds, clients))
    setting = Setting(asked.replicas, rules, arrivals, asked.seconds, asked.kill, asked.restart, asked.seed, asked.ray)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(compare(asked.bundle, setting, Path(folder, "servers.log")))
    print(result.to_text())
    if asked.out:
        asked.out.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return 1 if result.unexpected else 0


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
