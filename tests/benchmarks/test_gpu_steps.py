"""The steps of benchmarks/gpu.sh are existing commands, in the order of their needs."""

from pathlib import Path
from typing import Any

import click
import gpu_pairs
import gpu_run
import pytest
from gpu_results import ResultStore, Step, StepPlan
from gpu_run import BENCHMARKS, DEVICES, REPOSITORY, GpuRun, has_provider
from gpu_steps import all_steps, without_wheels

from pplex.cli import main

FROM_CLI = ("-c", "from pplex.cli import main; main()")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_every_step_is_an_existing_command(tmp_path: Path, device: str, size: str) -> None:
    steps = all_steps(GpuRun(tmp_path, device, size))
    assert len({step.name for step in steps}) == len(steps)
    made = [step.makes.parent for step in steps if step.makes]
    assert len(set(made)) == len(made), "each is removed with its folder"
    before: set[str] = set()
    for step in steps:
        assert {*step.needs, *step.unless} <= before, f"{step.name} comes before what it needs"
        before.add(step.name)
        check(step)


def check(step: Step) -> None:
    command = list(step.command[2:])  # after `python -P`
    if command[:2] == list(FROM_CLI):
        return parse(command[2:])
    if command[0] == str(BENCHMARKS / "gpu_stand_in.py"):
        command = command[1:]
    match Path(command[0]).name, command[1:]:
        case "pplex-export", rest:
            parse(rest)
        case "gpu_pairs.py", rest:
            gpu_pairs.arguments(rest)
        case "gpu_probes.py", ["candidates", _, *rest]:
            parse(rest)
        case "gpu_probes.py", [probe, *rest]:
            assert probe in ("machine", "speak", "tests")
            for word in rest:
                assert not word.startswith("tests/") or exists(word), word
        case script, _:
            raise AssertionError(f"{step.name} runs {script}")


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    function = name.partition("[")[0]
    return f"def {function}(" in (REPOSITORY / path).read_text() if name else (REPOSITORY / path).is_file()


def parse(arguments: list[str]) -> None:
    """Parse as click does, without calling the command."""
    command: click.Command = main
    rest = list(arguments)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest.pop(0))  # a command is imported on its first use
        assert found is not None
        command = found
    command.make_context(str(command.name), rest)


def test_every_file_with_tests_for_gpus_is_a_step(tmp_path: Path) -> None:
    commands = [word for step in all_steps(GpuRun(tmp_path, "cuda", "full")) for word in step.command]
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        marked = any(
            line.startswith(("@pytest.mark.gpu", "pytestmark = pytest.mark.gpu"))
            for line in path.read_text().splitlines()
        )
        file = path.relative_to(REPOSITORY).as_posix()
        assert not marked or any(word.partition("::")[0] == file for word in commands), file


def names(run: GpuRun) -> list[str]:
    return [step.name for step in all_steps(run)]


def test_the_order_is_first_what_needs_no_wheel_and_last_what_may_not_run(tmp_path: Path) -> None:
    run = GpuRun(tmp_path, "cuda", "full")
    found = names(run)
    assert found[: len(first := [step.name for step in without_wheels(run)])] == first
    assert first[:4] == ["machine", "tests.cuda_device", "checkpoint.wide", "torch.graphs.wide"]
    order = (
        "golden.onnxruntime", "validate.wide-bf16", "validate.wide-fp16", "validate.wide-int4", "ab.mask", "ab.fpa_intb",
        "ab.topk", "ab.cudnn", "stages.bf16", "stages.int4", "stages.fp8", "torch.graphs", "moshi", "stages.bf16.64",
        "golden.rtx",
    )  # fmt: skip
    places = [found.index(name) for name in order]
    assert places == sorted(places)


def test_what_is_there_within_five_minutes_takes_less(tmp_path: Path) -> None:
    steps = list(without_wheels(GpuRun(tmp_path, "cuda", "full")))
    assert sum(step.least_s for step in steps) <= 300


def test_a_step_can_end_in_the_time_that_it_asks_for(tmp_path: Path) -> None:
    """A pair takes the seconds of its points, whatever else it does."""
    for step in all_steps(GpuRun(tmp_path, "cuda", "full")):
        assert 0 < step.least_s <= step.limit_s, step.name
        if step.name.startswith("ab."):
            asked = gpu_pairs.arguments(step.command[3:])
            seconds = asked.seconds * len(gpu_pairs.points(asked, 3000))
            assert seconds == 30 * len(asked.slots) < step.least_s


def blocked(run: GpuRun, tmp_path: Path, prefix: str) -> set[str | None]:
    plan = StepPlan(all_steps(run), ResultStore(tmp_path / "results"))
    return {plan.blocked(step) for name, step in plan.steps.items() if name.startswith(prefix)}


def test_a_library_that_refuses_the_gpu_is_skipped_unless_named(tmp_path: Path) -> None:
    hopper: dict[str, Any] = {"work": tmp_path, "device": "cuda", "size": "full", "sm": 90}
    (reason,) = blocked(GpuRun(**hopper), tmp_path, "golden.rtx")
    assert reason is not None and "TensorRT-RTX has no kernels for sm_90, only for sm_75, sm_80" in reason
    for name, run in (("stages.rtx", hopper), ("rtx", hopper | {"sm": 89})):
        named = frozenset([name]) if name == "stages.rtx" else frozenset[str]()
        assert blocked(GpuRun(**run, named=named), tmp_path, "golden.rtx") == {None}
    assert blocked(GpuRun(**hopper), tmp_path, "golden.onnxruntime") == {None}
    blackwell = GpuRun(**hopper | {"sm": 100})
    (reason,) = blocked(blackwell, tmp_path, "ab.")
    assert reason is not None and "onnxruntime-gpu has no kernels for sm_100" in reason


def test_before_the_wheel_arrives_its_steps_wait_and_others_run(tmp_path: Path) -> None:
    run = GpuRun(tmp_path, "cuda", "full", sm=90, provider=False)
    for prefix in ("golden.onnxruntime", "ab.", "stages.bf16", "validate.wide", "speak.int4"):
        (reason,) = blocked(run, tmp_path, prefix)
        assert reason is not None and reason.startswith("onnxruntime-gpu is not here yet"), prefix
    assert all(blocked(run, tmp_path, step.name) == {None} for step in without_wheels(run))


def test_the_stand_in_runs_no_step_that_compares_values(tmp_path: Path) -> None:
    run = GpuRun(tmp_path, "stand-in", "tiny")
    for prefix in ("golden.", "validate.", "speak.", "tests.", "torch."):
        assert None not in blocked(run, tmp_path, prefix), prefix
    for prefix in ("machine", "ab.", "stages.bf16", "frame.int4", "priming.fp8"):
        assert blocked(run, tmp_path, prefix) == {None}, prefix


def test_a_provider_is_found_by_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    library.parent.mkdir(parents=True)

    class Spec:
        submodule_search_locations = (str(tmp_path / "onnxruntime"),)

    monkeypatch.setattr(gpu_run, "find_spec", lambda name: Spec)
    assert not has_provider()
    library.touch()
    assert has_provider()
    monkeypatch.setattr(gpu_run, "find_spec", lambda name: None)
    assert not has_provider()
