"""benchmarks/gpu.sh: results are kept whatever happens to a step."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_runner
import pytest
from gpu_results import ResultStore, Step, StepPlan
from gpu_runner import run_steps
from gpu_steps import REPOSITORY
from gpu_table import to_markdown

ROW = {"stage": "frame", "context_steps": 100, "p50_ms": 30.0, "p95_ms": 40.0, "floor_ms": 10.0, "kernels": 7}


def step(name: str, code: str = "pass", **options: Any) -> Step:
    return Step(name, (sys.executable, "-c", code), **{"limit_s": 20.0, "least_s": 0.1, **options})


def written(path: Path, then: str = "") -> str:
    """Code that adds a line to a file, to show that it ran."""
    return f"open({str(path)!r}, 'a').write('x\\n')\n{then}"


def times(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ResultStore]:
    """A call with a time limit in seconds, after earlier calls; it has read the store again."""
    monkeypatch.setattr(gpu_runner, "GRACE_S", 0.2)

    def run(*steps: Step, seconds: float = 20.0, names: list[str] | None = None) -> ResultStore:
        store = ResultStore(tmp_path / "results")
        plan = StepPlan(steps, store)
        run_steps(plan, names or list(plan.steps), time.monotonic() + seconds, lambda line: None)
        return ResultStore(tmp_path / "results")

    return run


def test_finished_steps_do_not_run_again(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    good, bad = step("good", written(tmp_path / "good")), step("bad", written(tmp_path / "bad", "raise SystemExit(3)"))
    call(good, bad)
    store = call(good, bad)
    assert (store.outcome("good"), store.outcome("bad")) == ("ok", "failed")
    assert (times(tmp_path / "good"), times(tmp_path / "bad")) == (1, 1)


def test_a_failure_keeps_its_last_lines_and_stops_nothing(call: Callable[..., ResultStore]) -> None:
    code = "import sys; [print(i, file=sys.stderr) for i in range(100)]; raise ValueError('no such kernel')"
    store = call(step("bad", code), step("next"), step("killed", "import os; os.kill(os.getpid(), 11)"))
    bad = store.steps["bad"]
    assert bad["reason"] == "exit code 1: ValueError: no such kernel" and bad["exit_code"] == 1
    assert len(bad["last_lines"]) == 20 and bad["last_lines"][-1] == "ValueError: no such kernel"
    assert store.outcome("next") == "ok"
    assert store.steps["killed"]["reason"].startswith("signal SIGSEGV")
    assert "no such kernel" in store.log_path.read_text()


def test_the_reason_of_a_failed_command_is_its_error_and_not_the_hint_below(call: Callable[..., ResultStore]) -> None:
    def failing(name: str, *lines: str) -> Step:
        return step(name, f"import sys; print(*{lines!r}, sep='\\n', file=sys.stderr); sys.exit(1)")

    store = call(
        failing("hinted", "Error: no such bundle", "To check this machine: pplex-export doctor"), failing("mute")
    )
    assert store.steps["hinted"]["reason"] == "exit code 1: Error: no such bundle"
    assert store.steps["mute"]["reason"] == "exit code 1: it printed nothing"


def test_json_is_found_after_output_of_libraries(call: Callable[..., ResultStore]) -> None:
    code = "import json; print('Failed to load lib.so'); print(json.dumps({'a': [1]}, indent=2))"
    store = call(step("a", code, json=True), step("b", "print('no JSON')", json=True))
    assert store.steps["a"]["result"] == {"a": [1]} and store.steps["b"]["result"] is None


def test_a_missing_program_is_a_failure(call: Callable[..., ResultStore]) -> None:
    store = call(replace(step("a"), command=("/nowhere/python",)))
    assert "No such file or directory: '/nowhere/python'" in store.steps["a"]["reason"]


def test_steps_that_need_a_failed_step_are_skipped_until_it_succeeds(
    call: Callable[..., ResultStore], tmp_path: Path
) -> None:
    code = f"import os; raise SystemExit(not os.path.exists({str(tmp_path / 'cure')!r}))"
    first, second = step("first", code), step("second", needs=("first",))
    third = step("third", needs=("second",))
    store = call(first, second, third)
    assert store.steps["second"]["reason"] == "needs first, which failed"
    assert store.steps["third"]["reason"] == "needs second, which was skipped"
    (tmp_path / "cure").touch()
    store.steps.pop("first")
    store.save()
    store = call(first, second, third)
    assert [store.outcome(name) for name in ("first", "second", "third")] == ["ok"] * 3


def test_a_step_may_have_nothing_to_do(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    code = written(tmp_path / "a", "import sys; print('no GPU', file=sys.stderr); sys.exit(77)")
    for _ in range(2):
        store = call(step("a", code), step("b", needs=("a",)), step("c", unless=("b",)), step("d", unless=("c",)))
    assert (store.outcome("a"), store.steps["a"]["reason"], times(tmp_path / "a")) == ("skipped", "no GPU", 1)
    assert store.steps["b"]["reason"] == "needs a, which was skipped"
    assert store.outcome("c") == "ok" and store.steps["d"]["reason"] == "c succeeded"


def test_a_step_has_a_time_limit_that_also_ends_its_children(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    child = f"import time; time.sleep(1.2); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(30)"
    store = call(step("slow", code, limit_s=0.5), step("next"))
    assert store.steps["slow"]["reason"] == "it took more than 0.5 s" and store.outcome("next") == "ok"
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_an_interrupted_step_is_retried_once(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    slow, other = step("slow", written(tmp_path / "slow", "import time; time.sleep(30)")), step("other")
    store = call(slow, other, seconds=1.7)
    assert store.outcome("slow") == "cut off" and store.outcome("other") is None
    store = call(slow, other, seconds=1.7)
    assert store.outcome("slow") == "timed out" and "in try 2" in store.steps["slow"]["reason"]
    store = call(slow, other)
    assert times(tmp_path / "slow") == 2 and store.outcome("other") == "ok"


def test_a_step_without_enough_time_left_is_postponed(call: Callable[..., ResultStore]) -> None:
    long = step("long", least_s=60)
    store = call(step("short"), long, step("after", needs=("long",)))
    assert set(store.steps) == {"short"}
    assert call(step("short"), long).outcome("long") == "ok", "a call that begins with it has all the time there is"


def test_results_before_an_interruption_are_kept_and_resumed(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    out = tmp_path / "out" / "a.json"
    code = f"""
import json, pathlib, time
path = pathlib.Path({str(out)!r})
rows = json.loads(path.read_text())["rows"] if path.exists() else []
path.write_text(json.dumps({{"rows": [*rows, len(rows)]}}))
time.sleep(0 if rows else 30)
"""
    store = call(step("a", code, out=out), seconds=2.0)
    assert (store.outcome("a"), store.steps["a"]["result"]) == ("cut off", {"rows": [0]})
    store = call(step("a", code, out=out))
    assert (store.outcome("a"), store.steps["a"]["result"]) == ("ok", {"rows": [0, 1]})


def test_results_of_another_machine_are_measured_again(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    """Its file is missing, and one table must not mix the times of two machines."""
    out = tmp_path / "out" / "a.json"
    ResultStore(tmp_path / "results").record(
        "a", outcome="cut off", reason="x", tries=1, seconds=0.0, result={"rows": [1]}
    )
    code = f"import pathlib; path = pathlib.Path({str(out)!r}); assert not path.exists(); path.write_text('[]')"
    assert call(step("a", code, out=out)).steps["a"]["result"] == []


def test_a_call_locks_out_others_and_its_step_dies_with_it(tmp_path: Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(30)"
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "benchmarks")!r})
from pathlib import Path
import gpu_runner
assert gpu_runner.lock(Path({str(tmp_path)!r}))
gpu_runner._execute((sys.executable, "-c", {child!r}), 60, sys.stdout.buffer, sys.stderr.buffer)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        step_id = int(process.stdout.readline())
        assert not gpu_runner.lock(tmp_path)
        process.kill()
    while Path(f"/proc/{step_id}").exists():
        time.sleep(0.01)
    assert gpu_runner.lock(tmp_path)


def test_results_of_a_killed_call_are_resumed(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    ResultStore(tmp_path / "results").record("a", outcome="cut off", reason="x", tries=1, seconds=0.0, result=None)
    (tmp_path / "a.json").write_text('{"rows": [1]}')
    code = f"import sys; sys.exit(open({str(tmp_path / 'a.json')!r}).read() != '{{\"rows\": [1]}}')"
    assert call(step("a", code, out=tmp_path / "a.json")).outcome("a") == "ok"


def test_products_are_removed_after_their_last_user_and_rebuilt_on_demand(
    call: Callable[..., ResultStore], tmp_path: Path
) -> None:
    made = tmp_path / "work" / "a" / "bundle"
    make = step("make", written(tmp_path / "log", f"import os; os.makedirs({str(made)!r})"), makes=made)
    there = f"import os; assert os.path.isdir({str(made)!r})"
    steps = (make, step("one", there, needs=("make",)), step("two", there, needs=("make",)))
    store = call(*steps, names=["one"])
    assert made.exists(), "two is still to come"
    made.rmdir()  # another machine
    store = call(*steps)
    assert [store.outcome(name) for name in ("make", "one", "two")] == ["ok"] * 3
    assert times(tmp_path / "log") == 2 and not made.parent.exists()
    call(*steps)
    assert times(tmp_path / "log") == 2, "no step needs it any more"


def test_nothing_is_made_for_steps_that_cannot_run_here(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    """It would be deleted at once, and made again when a library has arrived."""
    first, second = tmp_path / "work/first/a", tmp_path / "work/second/b"
    code = "import os; os.makedirs({!r})"
    raw, made = step("raw", code.format(str(first)), makes=first), step("made", code.format(str(second)), makes=second)
    made, use = replace(made, needs=("raw",)), step("use", needs=("made",))
    store = call(raw, made, replace(use, lacks="the library is not here"))
    assert [store.outcome(name) for name in ("raw", "made", "use")] == ["skipped"] * 3
    assert store.steps["raw"]["reason"] == store.steps["made"]["reason"] == "no step that needs it can run here"
    store = call(raw, made, use)
    assert [store.outcome(name) for name in ("raw", "made", "use")] == ["ok"] * 3


def test_leftovers_of_other_results_are_rebuilt(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    made = tmp_path / "work" / "a" / "bundle"
    made.mkdir(parents=True)
    make = step("make", f"import os; os.mkdir({str(made)!r})", makes=made)
    assert call(make, step("use", needs=("make",))).outcome("make") == "ok"


def test_results_are_complete_when_the_call_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(REPOSITORY / "benchmarks")!r})
from pathlib import Path
from gpu_results import ResultStore, StepPlan, Step
from gpu_runner import run_steps
steps = [Step(f"step {{i}}", ("true",), 5.0, 0.0) for i in range(400)]
store = ResultStore(Path({str(tmp_path)!r}))
store.facts = {{"long": "x" * 1_000_000}}
run_steps(StepPlan(steps, store), [step.name for step in steps], time.monotonic() + 60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "results.json").exists():
        time.sleep(0.01)
    for _ in range(100):
        json.loads((tmp_path / "results.json").read_text())
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ResultStore(tmp_path).steps


def test_killed_calls_count_as_tries(call: Callable[..., ResultStore], tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    store.record("a", outcome="cut off", reason="the call ended while it ran", tries=2, seconds=0.0)
    assert call(step("a", written(tmp_path / "a"))).outcome("a") == "cut off" and times(tmp_path / "a") == 0


def test_table_has_a_block_for_each_side_and_the_outcome_of_every_step(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.facts = {"size": "full", "device": "cuda"}
    for name, frames, cells in (
        ("stages.bf16", 300, ((1, 100, 45.0),)),
        ("stages.bf16.64", 200, ((1, 100, 50.0), (8, 100, 90.0), (16, 100, 70.0), (1, 3000, 60.0), (8, 3000, 85.0))),
    ):
        rows = [{**ROW, "slots": slots, "context_steps": length, "p99_ms": p99_ms} for slots, length, p99_ms in cells]
        result = {"rows": rows, "figures": {"frames": frames}}
        store.record(name, outcome="ok", reason=None, tries=1, seconds=9.0, result=result)
    store.record("moshi", outcome="failed", reason="exit code 1: a | b", tries=1, seconds=3.2)
    failure = {"outcome": "failed", "said": "EngineError: no\nmore", "seconds": 1.0}
    store.record(
        "golden.rtx", outcome="failed", reason="x", tries=1, seconds=1.0, result={"tests": {"test_a": failure}}
    )
    table = to_markdown(store)
    assert "## bf16\n" in table and "| frame | 1 | 100 | 300 | 30.00 | 40.00 | 45.00 | 10.00 | 3.0 | 7 |" in table
    assert "- 100 context steps: 16 (1: 45.0 ms, 8: 90.0 ms, 16: 70.0 ms)\n" in table
    assert "- 3000 context steps: 1 (1: 60.0 ms, 8: 85.0 ms)\n" in table, "what was not reached is not claimed"
    assert "| moshi | failed | 3 | exit code 1: a \\| b |" in table
    assert "| `test_a` | failed | EngineError: no |" in table


def test_table_shows_pairs_as_ratios_to_the_first_variant_of_the_same_point(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.facts = {"size": "full", "device": "cuda"}
    facts = {"load_s": 2.0, "first_calls_s": 0.5}
    variants = {"mask": {**facts, "kernels": {"temporal": 90}}, "lengths": facts, "third": facts}
    times = ((1, "mask", 4.0), (1, "lengths", 3.0), (1, "third", 8.0), (8, "mask", 10.0), (8, "lengths", 11.0))
    rows = [
        {"graph": "temporal", "slots": slots, "context_steps": 3000, "variant": name, "p50_ms": p50_ms, "p95_ms": 9.0}
        for slots, name, p50_ms in times
    ]
    store.record("ab.mask", outcome="ok", tries=1, seconds=9.0, result={"variants": variants, "pairs": rows})
    lines = [line for line in to_markdown(store).splitlines() if line.startswith("| ab.mask | temporal")]
    assert lines[0] == "| ab.mask | temporal | 1 | 3000 | mask | 4.00 | 1.000 | 90 | 2.0 | 0.5 |"
    assert [line.split(" | ")[6] for line in lines] == ["1.000", "0.750", "2.000", "1.000", "1.100"]


def test_while_wheels_are_missing_the_script_runs_what_needs_none(tmp_path: Path) -> None:
    """The rehearsal on the processor: of load 0 only two steps need no GPU. The table is there after the first step."""
    (tmp_path / "load").mkdir()
    (tmp_path / "load/SHA256SUMS").write_text(f"{'0' * 64}  some.whl\n")
    (tmp_path / "load/some.whl.part000").write_bytes(b"a part")
    options = ("--size", "tiny", "--device", "cpu", "--wheels", tmp_path / "load")
    folders = ("--work", tmp_path / "work", "--results", tmp_path / "results")
    with subprocess.Popen(
        [REPOSITORY / "benchmarks/gpu.sh", *folders, *options],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "machine" in process.stdout.readline()
        while not (tmp_path / "results/table.md").exists() and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, "the next step is running"
        printed, warned = process.communicate()
    assert process.returncode == 0 and "some.whl: parts after 000 are missing" in warned
    assert "Call it again with the next load." in warned and "These steps are done." in printed
    assert set(ResultStore(tmp_path / "results").steps) == {
        "machine", "checkpoint.wide", "tests.cuda_device", "torch.graphs.wide", "tests.torch_backend"
    }  # fmt: skip
    assert "| checkpoint.wide | ok |" in (tmp_path / "results/table.md").read_text()


def test_the_script_lists_its_steps_and_needs_nothing_installed(tmp_path: Path) -> None:
    command = [REPOSITORY / "benchmarks/gpu.sh", "--work", tmp_path / "work", "--results", tmp_path / "results"]
    environment = {**os.environ, "PYTHON": sys.executable}
    listed = subprocess.run([*command, "--list"], env=environment, capture_output=True, text=True, check=True).stdout
    assert listed.split()[:4] == ["-", "machine", "-", "tests.cuda_device"]
    refused = subprocess.run([*command, "--again", "dance"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "Unknown step dance" in refused.stderr
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    folders = {*project["tool"]["setuptools"]["package-dir"].values()} - {"requirements"}  # which has no code
    linked = tmp_path / "work/links/pplex"
    assert {path.name for path in linked.iterdir() if (path / "__init__.py").is_file()} == folders
