"""Tests and measures our engines on a machine with one NVIDIA GPU and no network: called by benchmarks/gpu.sh.

docs/gpu_run.md explains the steps and how to prepare the machine; gpu_steps.py defines the steps.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from gpu_results import FAILED, TIMED_OUT, ResultStore, StepPlan
from gpu_run import DEVICES, GpuRun, found_sm, has_provider
from gpu_runner import lock, run_steps
from gpu_steps import all_steps, without_wheels
from gpu_table import to_markdown

LOAD_0 = "load-0"  # names all steps that need no carried wheel


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.sh", description="Test and measure our engines on this machine's GPU.")
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"run only these and their needs (default: all); {LOAD_0}: without wheels",
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir(), "pplex-gpu"), help="folder: up to 50 GB"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("gpu-results"), help="folder: results.json, log.txt, table.md"
    )
    parser.add_argument("--minutes", type=float, default=9, help="limit of this call; the next call continues")
    parser.add_argument("--size", choices=["full", "small", "tiny"], default="full", help="size of the checkpoint")
    parser.add_argument("--device", choices=DEVICES, default="cuda", help="cpu, stand-in: a rehearsal without a GPU")
    parser.add_argument(
        "--again", action="append", default=[], metavar="STEP", help="delete the result of this step; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="print the steps and their outcomes; run nothing")
    parser.add_argument("--table", action="store_true", help="print table.md; run nothing")
    return parser.parse_args()


def main() -> int:
    began, asked = time.monotonic(), _arguments()
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, signal.default_int_handler)  # on these signals, stop the running step
    made = asked.work.resolve() / "made"  # only files in this folder are ever deleted
    run = GpuRun(made, asked.device, asked.size, found_sm(), has_provider(), frozenset(asked.steps))
    store = ResultStore(asked.results)
    asked.steps = [name for step in asked.steps for name in _named(step, run)]
    plan = StepPlan(all_steps(run), store)
    unknown = sorted({*asked.steps, *asked.again} - set(plan.steps))
    if unknown:
        print(f"Unknown step {', '.join(unknown)}; --list prints all steps.", file=sys.stderr)
        return 2
    if asked.table:
        print(to_markdown(store))
        return 0
    if asked.list:
        print("\n".join(f"{store.outcome(name) or '-':<10}  {name}" for name in plan.steps))
        return 0
    asked_for = {"size": run.size, "device": run.device}
    if store.facts not in ({}, asked_for):
        print(f"{store.path} is for {store.facts}, not {asked_for}: name another --results.", file=sys.stderr)
        return 2
    if not lock(made):
        print(f"Another call is using {asked.work}: wait for it, or stop it.", file=sys.stderr)
        return 2
    store.facts = asked_for
    for name in ("machine", *asked.again):  # always run "machine" again: this may be another machine
        store.steps.pop(name, None)

    def tell(line: str) -> None:
        print(line, flush=True)
        (asked.results / "table.md").write_text(to_markdown(store))  # now: a killed call writes nothing more

    try:
        left = run_steps(plan, asked.steps or list(plan.steps), began + 60 * asked.minutes, tell)
    except KeyboardInterrupt:
        print("Stopped by a signal. Call it again: it resumes from here.", file=sys.stderr)
        return 130
    finally:
        (asked.results / "table.md").write_text(to_markdown(store))
    bad = [name for name in plan.steps if store.outcome(name) in (FAILED, TIMED_OUT) or store.is_given_up(name)]
    print(f"{len(bad)} steps failed or timed out{': ' if bad else ''}{', '.join(bad)}")
    done = "These steps are done." if asked.steps else "All steps are done."
    print(f"Call it again: {len(left)} steps left." if left else done)
    return 1 if bad else 0


def _named(step: str, run: GpuRun) -> list[str]:
    return [one.name for one in without_wheels(run)] if step == LOAD_0 else [step]


if __name__ == "__main__":
    sys.exit(main())
