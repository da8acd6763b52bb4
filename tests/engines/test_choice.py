"""The precision that `build` chooses, from the sizes of the released model and of the target."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pplex.engines.choice import Choice, by_fidelity, choose, target_of
from pplex.engines.plan import plan
from pplex.engines.plan_report import with_capacity
from pplex.engines.processor import ProcessorPlan
from pplex.export.synth import _config
from pplex.measure.tables import readable
from pplex.runtime import cgroup
from pplex.runtime.config import RELEASED
from pplex.runtime.errors import BuildError, ConfigError
from pplex.runtime.gpus import GPUS, parse_gpu
from pplex.runtime.precision import PRECISIONS, parse_precision

GB = 10**9
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def on_gpu(name: str, slots: int | None = None, capacity: int | None = None) -> Choice:
    config = RELEASED if capacity is None else with_capacity(RELEASED, capacity)
    return choose(config, target_of(parse_gpu(name)), slots, shorten=capacity is None)


def on_processor(memory_nbytes: int) -> Choice:
    return choose(RELEASED, target_of(None, memory_nbytes))


@pytest.mark.parametrize("results", ["precision_small_cpu", "precision_small_outliers_cpu"])
@pytest.mark.parametrize("drift", ["text_kl", "audio_kl"])
def test_the_order_of_precisions_is_that_of_the_measured_drift(results: str, drift: str) -> None:
    measured = json.loads((RESULTS / f"{results}.json").read_text())["drifts"]
    measured["int4"] = measured["int4, AWQ"]
    names = [name for name in by_fidelity() if name in measured]
    assert names == sorted(names, key=lambda name: measured[name][drift]) and len(names) == len(PRECISIONS) - 1
    assert by_fidelity()[0] == "fp32"  # the precision that the others are compared with


def test_the_table_of_the_documentation_is_what_is_chosen() -> None:
    page = (Path(__file__).parents[2] / "docs" / "precision.md").read_text()
    for gigabytes, label in ((16, "16 GB"), (24, "24 GB, 32 GB"), (32, "24 GB, 32 GB"), (64, "64 GB")):
        choice = on_processor(gigabytes * GB)
        better = f"{choice.better[0]}: {readable(choice.better[1])}" if choice.better else ""
        row = f"| {label} | {choice.precision} ({readable(choice.needed_nbytes)}) | {better} |".replace("|  |", "| |")
        assert row in page
    for name, words in (("rtx-4060", "int8: 10.8 GB"), ("rtx-4080", "fp16: 22.1 GB")):
        choice = on_gpu(name)
        assert f"| {choice.precision} for {choice.slots} conversation" in page and choice.better
        assert f"{choice.better[0]}: {readable(choice.better[1])}" == words and words in page


class TestProcessor:
    @pytest.mark.parametrize(
        "gigabytes, precision, better",
        [(13, "int4", "int8"), (16, "int4", "int8"), (24, "int8", "fp32"), (32, "int8", "fp32"), (64, "fp32", None)],
    )
    def test_the_released_model(self, gigabytes: int, precision: str, better: str | None) -> None:
        choice = on_processor(gigabytes * GB)
        assert (choice.precision, choice.slots, choice.capacity) == (precision, 1, 3000)
        assert choice.needed_nbytes <= gigabytes * GB
        assert (choice.better and choice.better[0]) == better
        assert choice.better is None or choice.better[1] > gigabytes * GB

    def test_more_memory_never_gives_a_less_faithful_precision(self) -> None:
        chosen = [by_fidelity().index(on_processor(gigabytes * GB).precision) for gigabytes in range(13, 80)]
        assert chosen == sorted(chosen, reverse=True)

    def test_sixteen_bits_are_not_chosen_because_the_processor_computes_them_in_float32(self) -> None:
        """They need more memory than float32, so no memory is right for them."""
        for name in ("fp16", "fp8"):
            wide = ProcessorPlan(RELEASED, parse_precision(name), 3000)
            assert wide.loaded_nbytes > ProcessorPlan(RELEASED, parse_precision("fp32"), 3000).loaded_nbytes

    def test_the_need_is_the_larger_of_the_first_load_and_of_conversations(self) -> None:
        int4 = ProcessorPlan(RELEASED, parse_precision("int4"), 3000)
        assert int4.needed_nbytes(1) == int4.needed_nbytes(2) < int4.needed_nbytes(4)

    def test_the_released_model_in_int4_needs_what_was_measured(self) -> None:
        figures = json.loads((RESULTS / "load_full_int4.json").read_text())["figures"]
        int4 = ProcessorPlan(RELEASED, parse_precision("int4"), 3000)
        assert int4.first_nbytes == pytest.approx(figures["first load: peak MB"] * 10**6, rel=0.06)
        assert int4.loaded_nbytes == pytest.approx(figures["later loads: peak MB"] * 10**6, rel=0.06)

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
    def test_a_small_model_needs_what_was_measured(self, precision: str) -> None:
        figures = json.loads((RESULTS / "load_small_precisions.json").read_text())[precision]["figures"]
        small = ProcessorPlan(_config("small"), parse_precision(precision), 3000)
        assert small.first_nbytes == pytest.approx(figures["first load: peak MB"] * 10**6, rel=0.2)
        assert small.loaded_nbytes == pytest.approx(figures["later loads: peak MB"] * 10**6, rel=0.2)

    def test_it_refuses_and_names_the_smallest_need_if_nothing_fits(self) -> None:
        with pytest.raises(BuildError, match=r"a processor has 8\.0 GB.*int4, needs 12\.8 GB.*\n.*--precision int4$"):
            on_processor(8 * GB)

    def test_this_machine_counts_with_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pplex.engines.choice.total_memory", lambda: 16 * GB)
        assert (
            choose(RELEASED, target_of(None)).to_text().startswith("--precision auto chooses int4 for this machine: ")
        )
        monkeypatch.setattr("pplex.engines.choice.total_memory", lambda: None)
        with pytest.raises(ConfigError, match=r"this machine is not known.*--memory 16GB"):
            target_of(None)

    def test_this_machine_has_memory(self) -> None:
        assert target_of(None).memory_nbytes == cgroup.total_memory()


class TestGpu:
    @pytest.mark.parametrize(
        "name, slots, precision, fitting, capacity",
        [
            ("rtx-4060", None, "int4", 1, 1536), ("rtx-4060", 1, "int4", 1, 1536),
            ("rtx-4080", None, "int8", 3, 3000), ("rtx-4080", 1, "int8", 1, 3000), ("rtx-4080", 8, "int4", 8, 1536),
            ("rtx-4090", None, "int8", 8, 3000), ("rtx-4090", 1, "fp16", 1, 3000), ("rtx-4090", 8, "int8", 8, 3000),
            ("rtx-3090", 9, "int4", 9, 3000), ("h100", None, "fp16", 8, 3000),
        ],
    )  # fmt: skip
    def test_the_released_model(
        self, name: str, slots: int | None, precision: str, fitting: int, capacity: int
    ) -> None:
        choice = on_gpu(name, slots)
        assert (choice.precision, choice.slots, choice.capacity) == (precision, fitting, capacity)

    @pytest.mark.parametrize("name", GPUS)
    def test_what_is_chosen_passes_the_check_of_the_build(self, name: str) -> None:
        gpu = parse_gpu(name)
        try:
            choice = on_gpu(name)
        except BuildError as error:
            assert gpu.precisions == ("fp32", "fp16") and "fp16, needs" in str(error)
            return
        plan(RELEASED, parse_precision(choice.precision), gpu, choice.capacity).check(choice.slots)
        assert choice.precision != "fp32"  # its attention is not one kernel

    def test_named_slots_and_capacity_are_kept(self) -> None:
        assert on_gpu("rtx-4080", 8, 768).precision == "int8"
        with pytest.raises(BuildError, match=r"has 8\.0 GB.*int4, needs .* for 8 conv.* 768 steps.*\n.*fewer --slots"):
            on_gpu("rtx-4060", 8)
        with pytest.raises(BuildError, match=r"for 1 conversation with 3000 steps.*\n.*a smaller --capacity"):
            on_gpu("rtx-4060", capacity=3000)

    def test_memory_without_a_name(self) -> None:
        with pytest.raises(ConfigError, match=r"a GPU of sm_89 is not known.*--memory"):
            target_of(parse_gpu("sm_89"))
        twelve = replace(parse_gpu("sm_89"), memory_nbytes=12 * GB)
        assert choose(RELEASED, target_of(twelve)).precision == on_gpu("rtx-4070").precision == "int8"

    def test_the_text_has_the_reason_and_the_next_better_one(self) -> None:
        assert on_gpu("rtx-4090").to_text() == (
            "--precision auto chooses int8 for GeForce RTX 4090: it needs 22.7 GB of 24.0 GB for 8 conversations with 3000 "
            "steps of context (4:00 minutes).\n"
            "  8.4 GB of weights, 1.6 GB a session, 125.4 MB of scratch; 1.5 GB stay free.\n"
            "  More faithful: fp16, which needs 30.1 GB, or --slots 4."
        )
        assert "\n  No precision has room for 8 conversations with 3000 steps" in on_gpu("rtx-4080").to_text()
