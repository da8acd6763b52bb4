"""`build` without --precision, and sizes of memory on the command line."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from folders import TINY

from pplex.cli import main
from pplex.cli.options import parse_memory
from pplex.export.build import _identity
from pplex.export.build_plan import Auto, BuildOptions, BuildPlan, plan_build
from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.bundle import open_bundle
from pplex.runtime.errors import ConfigError
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.precision import parse_precision


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def planned(auto: Auto, **options: object) -> BuildPlan:
    return plan_build(open_checkpoint(TINY / "checkpoint"), BuildOptions(auto=auto, **options))  # type: ignore[arg-type]


def test_a_build_without_a_precision_chooses_one_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pplex.engines.choice.total_memory", lambda: 16 * 10**9)
    result = run("build", TINY / "checkpoint", "--no-validate", "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert "--precision auto chooses fp32 for this machine: it needs 1.6 GB of 16.0 GB" in result.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert set(manifest["precision"].values()) == {"fp32"}
    assert {**manifest["choice"], "needed_nbytes": 0} == {
        "by": "auto", "precision": "fp32", "target": "this machine", "memory_nbytes": 16 * 10**9, "needed_nbytes": 0,
        "slots": 1, "capacity": 96, "better": None, "better_needs_nbytes": None,
    }  # fmt: skip
    assert (
        "--precision auto chose fp32 for this machine: 1.6 GB of 16.0 GB." in run("inspect", tmp_path / "bundle").stdout
    )


def test_nothing_is_written_if_nothing_fits(tmp_path: Path) -> None:
    result = run("build", TINY / "checkpoint", "--memory", "1GB", "--out", tmp_path / "bundle")
    assert result.exit_code == 1 and not list(tmp_path.iterdir())
    assert "No precision fits: a processor has 1.0 GB." in result.stderr and "needs 1.6 GB for 1 conv" in result.stderr


@pytest.mark.parametrize("gpu, precision", [("rtx-4060", "fp16"), ("h100", "fp16"), (None, "fp32")])
def test_what_is_chosen_is_what_is_built(gpu: str | None, precision: str) -> None:
    plan = planned(Auto(slots=3 if gpu else None), gpu=gpu and parse_gpu(gpu))
    assert plan.options.precision == parse_precision(precision) and plan.options.auto is None
    assert plan.options.slots == (3 if gpu else 8) and plan.options.capacity is None and len(plan.notes) == 1


def test_an_interrupted_build_resumes_whether_the_precision_was_chosen_or_named() -> None:
    named = plan_build(open_checkpoint(TINY / "checkpoint"), BuildOptions(precision=parse_precision("fp32")))
    assert _identity(planned(Auto(memory_nbytes=16 * 10**9))) == _identity(planned(Auto(memory_nbytes=8 * 10**9)))
    assert _identity(planned(Auto())) == _identity(named) and named.choice is None


@pytest.mark.parametrize("given, notes", [("default", 1), (None, 1), ("recordings", 2)])
def test_a_calibration_that_the_choice_does_not_use_is_reported(given: str | None, notes: int) -> None:
    plan = planned(Auto(), calibration=given)
    assert len(plan.notes) == notes and not plan.calibrated
    assert notes == 1 or plan.notes[1] == "fp32 uses no calibration here: recordings is not read."


@pytest.mark.parametrize("options", [{"for_engines": True}, {"capacity": 64}, {"depth_steps": 16}])
def test_the_choice_copes_with_the_other_options(options: dict[str, object]) -> None:
    plan = planned(Auto(), **options)
    assert plan.choice is not None and plan.choice.plan.config == plan.config


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--memory", "16"], "'16' is not a size of memory. Give a number and its unit: 8GB"),
        (["--memory", "4GB", "--precision", "int8"], "leave out --memory or --precision"),
        (["--slots", "8"], "add --gpu"),
        (["--memory", ""], "--memory is empty"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run("build", TINY / "checkpoint", "--out", tmp_path / "bundle", *arguments)
    assert result.exit_code == 2 and words in result.stderr and not list(tmp_path.iterdir())


def test_a_gpu_without_a_known_memory_needs_one(tmp_path: Path) -> None:
    result = run("build", TINY / "checkpoint", "--gpu", "sm_86", "--out", tmp_path / "bundle")
    assert result.exit_code == 1 and "--memory 16GB, or name a --precision" in result.stderr


@pytest.mark.parametrize(
    "text, nbytes",
    [("8GB", 8 * 10**9), ("7.5 GiB", 15 << 29), ("512mb", 512 * 10**6), (" 1TB ", 10**12), ("24gib", 24 << 30)],
)
def test_sizes_of_memory(text: str, nbytes: int) -> None:
    assert parse_memory(text) == nbytes


@pytest.mark.parametrize(
    "text", ["8", "GB", "-8GB", "8 G B", "0GB", "0.0GB", "infGB", "1e9GB", "8GB RAM", "8,5GB", "٨GB", "8KB"]
)
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size of memory"):
        parse_memory(text)


def test_plan_for_a_processor_has_the_precisions_and_the_choice() -> None:
    table = run("plan", "--memory", "16GB").stdout
    assert "| int8      | 8.8 GB " in table and "--precision auto chooses int4 for a processor" in table
    rows = json.loads(run("plan", "--memory", "32GB", "--precision", "int8", "--capacity", "3000", "--json").stdout)
    assert [(row["conversations"], row["memory_nbytes"]) for row in rows] == [(12, 32 * 10**9)]
    assert "No precision fits: a processor has 8.0 GB" in run("plan", "--memory", "8GB").stdout


def test_plan_for_a_gpu_of_another_size() -> None:
    assert "| int4, 1 slot, 1536 steps |" in run("plan", "--gpu", "sm_89", "--memory", "8GB").stdout
    assert chosen_for("rtx-4090") == "int8, 8 slots" and chosen_for("sm_89") == "?" and chosen_for("t4") == "-"


def chosen_for(name: str) -> str:
    """The last cell of a GPU's row: what a build chooses."""
    (row,) = [line for line in run("plan", "--gpu", name).stdout.splitlines() if f"| {name} " in line]
    return row.strip("| ").rpartition("|")[2].strip()
