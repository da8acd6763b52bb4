"""A bundle whose matrices have different forms: built, run, shown, and the same when it is built again."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from folders import TINY

from pplex.cli import main
from pplex.cli.options import parse_budget
from pplex.engines.bundle_report import report_bundle
from pplex.engines.onnx_file import weights_by_dtype
from pplex.export.build import build
from pplex.export.build_plan import BuildOptions, BuildPlan, Mix, plan_build
from pplex.export.calibration import weights_mark
from pplex.export.checkpoint import open_checkpoint
from pplex.export.sensitivity import SENSITIVITY_FILE, Sensitivity
from pplex.export.source import CheckpointSource
from pplex.export.staging import partial_folder
from pplex.export.storage import storages
from pplex.runtime import ort
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.errors import CalibrationError, ConfigError
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.stages import Stages

SOURCE = CheckpointSource(TINY / "checkpoint", None, None)
BUDGET = Mix(budget=(0.02, 0.6))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("mixed") / "bundle"
    return open_bundle(build(SOURCE, out, BuildOptions(auto=BUDGET)))


def test_the_manifest_has_the_form_of_each_group_and_the_drift(mixed: Bundle) -> None:
    choice = mixed.manifest["choice"]
    assert (mixed.precision["temporal"], mixed.precision["depth"], mixed.precision["mimi_decode"]) == (
        "mixed",
        "mixed",
        "fp32",
    )
    assert choice["drift"]["text"] <= 0.02 and choice["drift"]["audio"] <= 0.6
    forms = {form for groups in mixed.forms.values() for form in groups.values()}
    assert {"int4/128", "int8/32"} <= forms, "this budget needs both"


def test_graphs_have_these_forms_and_the_counted_bytes(mixed: Bundle) -> None:
    counted = weights_nbytes(mixed.config, mixed.precision, forms=mixed.forms)
    for graph in LANGUAGE_GRAPHS:
        model = onnx.load(mixed.graph_path(graph), load_external_data=False)
        stored = sum(weights_by_dtype(model).values())
        assert counted[graph] <= stored <= 1.005 * counted[graph] + 1000
        held = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, storage in storages(graph, mixed.config, mixed.precision, forms=mixed.forms).items():
            eight = storage.dtype == "int8"
            assert held[f"{name}.values"].data_type == (onnx.TensorProto.INT8 if eight else onnx.TensorProto.INT4)


@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
def test_onnx_runtime_multiplies_every_form_as_it_is(mixed: Bundle, tmp_path: Path, graph: str) -> None:
    options = ort._options("mixed", 1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort._session(mixed.graph_path(graph), "mixed", options, ["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    stored = storages(graph, mixed.config, mixed.precision, forms=mixed.forms).values()
    assert sum(node.op_type == "MatMulNBits" for node in nodes) == sum(weight.block >= 16 for weight in stored) > 0


def test_a_mix_runs(mixed: Bundle) -> None:
    stages = Stages(mixed, slots=2)
    for graph in LANGUAGE_GRAPHS:
        stages.run(graph, 1)
    assert abs(stages.hidden[0]).max() > 0


def test_inspect_shows_which_matrices_have_which_form(mixed: Bundle) -> None:
    text = report_bundle(mixed.folder).to_text()
    assert "The form of each matrix was chosen for a processor:" in text and "Predicted drift: text=" in text
    assert "| temporal int4/128 |" in text and "| depth int8/32 " in text and "all others" in text


def test_the_same_budget_gives_the_same_bundle_from_the_stored_measurement(mixed: Bundle, tmp_path: Path) -> None:
    measured: list[str] = []
    options = BuildOptions(auto=BUDGET, calibration=mixed.folder)
    out = build(SOURCE, tmp_path / "bundle", options, lambda stage, done, _: measured.append(stage) if done else None)
    again = open_bundle(out)
    assert again.manifest["files"] == mixed.manifest["files"] and again.forms == mixed.forms
    assert "sensitivity" not in measured and "calibrate" not in measured


def test_a_stopped_build_resumes_with_the_same_forms(mixed: Bundle, tmp_path: Path) -> None:
    options, out = BuildOptions(auto=BUDGET, calibration=mixed.folder), tmp_path / "bundle"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "depth":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(SOURCE, out, options, stop)
    kept = (partial_folder(out) / SENSITIVITY_FILE).read_bytes()
    assert kept == mixed.path(SENSITIVITY_FILE).read_bytes()
    written: list[str] = []
    build(SOURCE, out, options, lambda stage, done, _: written.append(stage) if done else None)
    assert open_bundle(out).manifest["files"] == mixed.manifest["files"] and "temporal" not in written


def planned(mix: Mix) -> BuildPlan:
    """For engines: on a processor, this small model needs less memory in fp32 than in int4."""
    return plan_build(open_checkpoint(TINY / "checkpoint"), BuildOptions(auto=mix, gpu=parse_gpu("sm_89")))


def test_fit_takes_what_the_memory_allows(mixed: Bundle) -> None:
    sensitivity = Sensitivity.load(mixed.path(SENSITIVITY_FILE), mixed.config, weights_mark(planned(BUDGET).checkpoint))
    smallest = planned(replace(BUDGET, budget=(1e3, 1e3))).mixed(sensitivity.of(compiled=True)).choice
    assert smallest is not None
    memory = smallest.to_dict()["needed_nbytes"] + 200_000
    plan = planned(Mix(memory_nbytes=memory)).mixed(sensitivity.of(compiled=True))
    assert plan.choice is not None and plan.mixing is not None
    assert memory - 50_000 < plan.choice.to_dict()["needed_nbytes"] <= memory
    assert plan.forms != smallest.to_dict()["forms"] and plan.options.slots == 1
    assert plan.choice.to_text().startswith("The mix for a GPU of sm_89 needs 1.5 GB of 1.5 GB for 1 conversation")


def test_with_enough_memory_nothing_is_mixed() -> None:
    plan = plan_build(open_checkpoint(TINY / "checkpoint"), BuildOptions(auto=Mix(memory_nbytes=8 * 10**9)))
    assert plan.mixing is None and plan.options.precision["temporal"] == "fp32"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["build", str(TINY / "checkpoint"), *(str(argument) for argument in arguments)])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--fit", "8GB", "--precision", "int8"], "leave out --precision"),
        (["--fit", "8GB", "--memory", "8GB"], "leave out --memory"),
        (["--drift-budget", "text=0.1"], "Give both in nats: text=0.01,audio=0.05"),
        (["--drift-budget", "text=0,audio=1"], "Give both in nats"),
        (
            ["--precision", "temporal=mixed"],
            "To let a build choose the form of each matrix: --precision mixed, --fit 8GB",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run("--out", tmp_path / "bundle", *arguments)
    assert result.exit_code in (1, 2) and words in result.stderr and not list(tmp_path.iterdir())


def test_a_mix_needs_a_calibration() -> None:
    with pytest.raises(CalibrationError, match=r"mixed \(temporal\) and mixed \(depth\) needs a calibration"):
        plan_build(open_checkpoint(TINY / "checkpoint"), BuildOptions(auto=BUDGET, calibration=None))


def test_budgets_are_parsed() -> None:
    assert parse_budget("text=0.01, audio=5e-2") == (0.01, 0.05)
    for text in ("audio=0.05,text=0.01", "text=-1,audio=1", "text=nan,audio=1", "0.01"):
        with pytest.raises(ConfigError, match="is not a budget of drift"):
            parse_budget(text)


def test_the_file_of_costs_is_readable(mixed: Bundle) -> None:
    costs = json.loads(mixed.path(SENSITIVITY_FILE).read_text())["costs"]
    assert costs["processors"]["temporal"]["text_linear"]["int8/32"][1] == 0, "audio does not depend on the text head"
