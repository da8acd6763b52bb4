"""Finds out what is true of our engines on a machine with one NVIDIA GPU and no network; benchmarks/gpu.sh calls this.

docs/gpu_run.md tells how to get here, and what the steps of gpu_steps.py are.
"""

import argparse
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from gpu_results import FAILED, TIMED_OUT, ResultStore, StepPlan, lock, run_steps
from gpu_steps import GpuRun, all_steps
from gpu_table import to_markdown


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.sh", description="What is true of our engines on this machine's GPU.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these, and what they need (default: all)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "pplex-gpu"), help="for up to 50 GB")
    parser.add_argument("--results", type=Path, default=Path("gpu-results"), help="results.json, log.txt, table.md")
    parser.add_argument("--minutes", type=float, default=9, help="of this call; what is left is for the next one")
    parser.add_argument("--size", choices=["full", "small", "tiny"], default="full", help="of the checkpoint")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal without a GPU")
    parser.add_argument(
        "--again", action="append", default=[], metavar="STEP", help="forget what came of it; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="print the steps and what came of them, and run none")
    parser.add_argument("--table", action="store_true", help="print table.md, and run none")
    return parser.parse_args()


def main() -> int:
    began, asked = time.monotonic(), _arguments()
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, signal.default_int_handler)  # ended from outside, we end our step
    made = asked.work.resolve() / "made"  # all that is removed is in it
    run = GpuRun(made, asked.device, asked.size)
    store = ResultStore(asked.results)
    plan = StepPlan(all_steps(run), store)
    unknown = sorted({*asked.steps, *asked.again} - set(plan.steps))
    if unknown:
        print(f"There is no step {', '.join(unknown)}; --list names them.", file=sys.stderr)
        return 2
    if asked.table:
        print(to_markdown(store))
        return 0
    if asked.list:
        print("\n".join(f"{store.outcome(name) or '-':<10}  {name}" for name in plan.steps))
        return 0
    asked_for = {"size": run.size, "device": run.device}
    if store.facts not in ({}, asked_for):
        print(f"{store.path} is of {store.facts}, not of {asked_for}: name another --results.", file=sys.stderr)
        return 2
    if not lock(made):
        print(f"Another call works in {asked.work}: wait for it, or end it.", file=sys.stderr)
        return 2
    store.facts = asked_for
    for name in ("machine", *asked.again):  # which may be another one by now
        store.steps.pop(name, None)
    try:
        left = run_steps(plan, asked.steps or list(plan.steps), began + 60 * asked.minutes, partial(print, flush=True))
    except KeyboardInterrupt:
        print("Ended from outside. Call it again: it goes on from here.", file=sys.stderr)
        return 130
    finally:
        (asked.results / "table.md").write_text(to_markdown(store))
    bad = [name for name in plan.steps if store.outcome(name) in (FAILED, TIMED_OUT) or store.is_given_up(name)]
    print(f"{len(bad)} steps failed or timed out{': ' if bad else ''}{', '.join(bad)}")
    print(f"Call it again: {len(left)} steps left." if left else "Nothing is left to do.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
