"""Rings in int8: their scales, a bundle with them past the ring's end, its state, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conversations import CAPACITY, FRAMES, PCM, PERSONA, heard, small_runtime, talk
from folders import TINY
from safetensors.numpy import load_file
from torch import nn

from pplex.engines.bundle_report import report_bundle
from pplex.engines.plan_report import report_plans
from pplex.engines.processor_report import report_processor
from pplex.export.build import BuildOptions
from pplex.export.build_plan import plan_build
from pplex.export.calibration import CALIBRATION_FILE, Calibration, weights_mark
from pplex.export.checkpoint import open_checkpoint
from pplex.export.graph import save, trace
from pplex.export.int8_rings import ROOM, PairedRingAttention, from_pairs, integers, ring_scales, to_pairs
from pplex.runtime.bundle import Bundle, processor_file
from pplex.runtime.config import INT8, INT8_PAIRS, LIKE_ACTIVATIONS, ModelConfig
from pplex.runtime.errors import CalibrationError, ConfigError
from pplex.runtime.graphs import GraphSpec, TensorSpec
from pplex.runtime.memory import slot_nbytes
from pplex.runtime.stages import Stages
from pplex.validate.golden import teacher_forced
from pplex.validate.probes import RewrittenBundle

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
# Of the range of the expected values, root mean square: measured 3.5e-3, 3.0e-3 and 4.5e-3. This model is 32 wide, which is
# too narrow for the errors of single values to average out.
GOLDEN_RMS = 0.01
KINDS = (LIKE_ACTIVATIONS, INT8)


def forced(bundle: Bundle) -> dict[str, np.ndarray]:
    """Outputs of the recorded teacher-forced steps, which pass the end of the ring."""
    recorded = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    kept = {int(step): i for i, step in enumerate(recorded["steps"])}
    assert max(kept) > CAPACITY
    outputs = teacher_forced(Stages(bundle, slots=1, logits=True), recorded["codes"].T.astype(np.int64), kept)
    return dict(zip(("hidden", "text_logits", "audio_logits"), outputs, strict=True))


@pytest.fixture(scope="module")
def pairs_bundle(bundle_of: Callable[..., Bundle]) -> Bundle:
    """The graphs from which engines are compiled."""
    return bundle_of(TINY, for_engines=True, kv_cache=INT8)


@pytest.mark.parametrize("name", ["int8_rings_bundle", "pairs_bundle"])
def test_golden_steps_past_the_rings_end_are_within_the_stated_tolerance(
    name: str, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(name)
    expected = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    late = np.sort(expected["steps"]) >= CAPACITY
    for name, got in forced(bundle).items():
        wanted = expected[name][:, : got.shape[1]] if name == "audio_logits" else expected[name]
        for steps in (late, ~late):
            error = float(np.sqrt(np.square(got[steps] - wanted[steps]).mean()) / np.ptp(wanted))
            assert 0 < error < GOLDEN_RMS, (name, error)


def test_the_form_for_processors_equals_the_graph(int8_rings_bundle: Bundle, tmp_path: Path) -> None:
    plain = tmp_path / "temporal.onnx"  # another file than the bundle's, which has a form for processors
    plain.write_bytes(int8_rings_bundle.graph_path("temporal").read_bytes())
    expected = forced(RewrittenBundle.of(int8_rings_bundle, {"temporal": plain}))
    for name, got in forced(int8_rings_bundle).items():
        # Sums in another order. A value beside a rounding border may change its integer, so not the usual 1e-5.
        assert np.abs(got - expected[name]).max() < 1e-3 * np.ptp(expected[name]), name


def test_the_graph_has_standard_operators_and_its_processor_form_one_of_onnx_runtime(int8_rings_bundle: Bundle) -> None:
    graph, form = (
        onnx.load(int8_rings_bundle.graph_path("temporal", on_processor), load_external_data=False).graph
        for on_processor in (False, True)
    )
    layers = int8_rings_bundle.config.temporal.layers
    assert {node.domain for node in graph.node} == {""}
    own = [node.op_type for node in form.node if node.domain]
    assert own == ["GroupQueryAttention"] * layers and not [n for n in form.node if n.op_type == "Attention"]
    assert [value.name for value in form.output[: len(graph.output)]] == [value.name for value in graph.output]


def test_rings_are_written_in_place_and_take_a_quarter_of_float32(
    tiny_bundle: Bundle, int8_rings_bundle: Bundle
) -> None:
    stages = Stages(int8_rings_bundle, slots=1)
    assert {state.dtype for state in stages.engines["temporal"].spec.state} == {"int8"}
    stages.run("temporal", 1)
    saved = stages.engines["temporal"].save(0, 4)
    assert all(ring[:, 0].any() and not ring[:, 1:].any() for ring in saved.values())
    wide, narrow = (slot_nbytes([b.specs["temporal"]], 3000) for b in (tiny_bundle, int8_rings_bundle))
    stack = tiny_bundle.config.temporal
    assert wide - narrow == 2 * stack.layers * 3000 * stack.dim * 3


def test_a_session_does_not_depend_on_its_neighbours(int8_rings_bundle: Bundle) -> None:
    """One of them has a longer history, so the operator reads more entries of its ring."""
    runtime = small_runtime(int8_rings_bundle, 3)
    with runtime.open(None, "", seed=7) as session:
        alone = talk(session, PCM[0])
    with (
        runtime.open("NATF0", PERSONA, seed=1) as longer,
        runtime.open(None, "", seed=7) as session,
        runtime.open(None, "", seed=2) as third,
    ):
        pairs = [{longer: PCM[1, i], session: PCM[0, i], third: PCM[2, i]} for i in range(FRAMES)]
        replies = [runtime.step(frames) for frames in pairs]
    assert heard([each[session] for each in replies]) == alone


@pytest.mark.parametrize("before", [40, 200])
def test_a_fork_and_its_original_stay_equal(int8_rings_bundle: Bundle, before: int) -> None:
    runtime = small_runtime(int8_rings_bundle, 3)
    with runtime.open("NATF0", PERSONA, seed=7) as session:
        talk(session, PCM[1, :before])
        with runtime.open(snapshot=session.snapshot()) as fork:
            replies = [runtime.step({session: frame, fork: frame}) for frame in PCM[0]]
    original, forked = (heard([each[one] for each in replies]) for one in (session, fork))
    assert original == forked


def test_a_session_that_goes_back_has_the_rings_of_the_earlier_frame(int8_rings_bundle: Bundle) -> None:
    runtime = small_runtime(int8_rings_bundle, 2)
    with runtime.open("NATF0", "", seed=7) as session, runtime.open("NATF0", "", seed=7) as early:
        for frame in PCM[0, :10]:
            runtime.step({session: frame, early: frame})
        talk(session, PCM[0, 10:20])
        assert session.rewind(0.8) == 10
        steps = int(runtime.ring.step[early.row]) - 1
        rings = [runtime.stages.kv_cache.save(one.row, steps) for one in (session, early)]
    for name, ring in rings[0].items():
        assert np.array_equal(ring, rings[1][name]), name


class TestScales:
    def test_a_value_is_its_integer_times_its_scale(self) -> None:
        scale = torch.tensor([0.5, 0.01]).reshape(1, 1, 2)
        x = torch.tensor([[10.2, -0.126], [1e9, -1e9]]).reshape(1, 1, 2, 2)
        assert integers(x, scale, 127).tolist() == [[[[20, -13], [127, -127]]]]

    def test_calibrated_values_fit_with_room(self, int8_rings_bundle: Bundle) -> None:
        config, calibration = int8_rings_bundle.config, calibration_of(int8_rings_bundle)
        scales = dict(ring_scales(calibration, config))
        assert len(scales) == 2 * config.temporal.layers == len(calibration.rings)
        for name, scale in scales.items():
            largest = calibration.rings[f"temporal.{name.replace('scales.', '')}"][:, None]
            used = integers(largest[None], scale, 127)
            assert torch.all((used >= 127 / ROOM - 1) & (used <= 127 / ROOM + 1))

    def test_a_channel_that_was_silent_still_has_a_scale(self, int8_rings_bundle: Bundle) -> None:
        calibration = calibration_of(int8_rings_bundle)
        silent = {name: torch.zeros_like(largest) for name, largest in calibration.rings.items()}
        found = dict(ring_scales(replace(calibration, rings=silent), int8_rings_bundle.config))
        assert all(bool((scale > 0).all()) for scale in found.values())

    def test_a_calibration_of_an_earlier_version_is_refused(self, int8_rings_bundle: Bundle) -> None:
        with pytest.raises(CalibrationError, match="made without them"):
            list(ring_scales(replace(calibration_of(int8_rings_bundle), rings={}), int8_rings_bundle.config))


def calibration_of(bundle: Bundle) -> Calibration:
    return Calibration.load(bundle.path(CALIBRATION_FILE), bundle.config, weights_mark(CHECKPOINT))


class TestOptions:
    def test_graphs_for_engines_have_pairs(self, pairs_bundle: Bundle, int8_rings_bundle: Bundle) -> None:
        assert (pairs_bundle.config.kv_cache, int8_rings_bundle.config.kv_cache) == (INT8_PAIRS, INT8)
        sizes = {slot_nbytes([bundle.specs["temporal"]], 3000) for bundle in (pairs_bundle, int8_rings_bundle)}
        assert len(sizes) == 1 and processor_file("temporal") not in pairs_bundle.manifest["files"]

    def test_a_build_without_a_calibration_is_refused(self) -> None:
        with pytest.raises(CalibrationError, match="--kv-cache int8 needs a calibration"):
            plan_build(CHECKPOINT, BuildOptions(kv_cache=INT8, calibration=None))

    def test_a_manifest_without_the_option_has_rings_like_the_activations(self, tiny_bundle: Bundle) -> None:
        earlier = {key: value for key, value in tiny_bundle.config.to_dict().items() if key != "kv_cache"}
        assert ModelConfig.from_dict(earlier) == tiny_bundle.config
        with pytest.raises(ConfigError, match="unknown kv_cache: 'int3'"):
            ModelConfig.from_dict({**earlier, "kv_cache": "int3"})

    def test_inspect_shows_it(self, int8_rings_bundle: Bundle, tiny_bundle: Bundle) -> None:
        assert "rings of the temporal transformer: int8" in report_bundle(int8_rings_bundle.folder).to_text()
        assert report_bundle(tiny_bundle.folder).to_dict()["kv_cache"] == LIKE_ACTIVATIONS


class TestPairs:
    def test_every_pair_of_integers_has_a_float16_of_its_own(self) -> None:
        a, b = all_pairs()
        pairs = to_pairs(a, b)
        assert len(pairs.unique()) == a.numel() and bool(pairs.isfinite().all())
        assert [x.equal(y) for x, y in zip(from_pairs(pairs), (a, b), strict=True)] == [True, True]

    def test_onnx_runtime_packs_and_unpacks_them_exactly(self, tmp_path: Path) -> None:
        spec = GraphSpec(
            "pairs", *(tuple(TensorSpec(n, "float32", ("B", 239)) for n in names) for names in ("ab", "cd"))
        )
        save(trace(spec, RoundTrip), spec, {}, tmp_path / "pairs.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "pairs.onnx", providers=["CPUExecutionProvider"])
        a, b = all_pairs()
        got = session.run(None, {"a": a.numpy(), "b": b.numpy()})
        assert np.array_equal(got[0], a.numpy()) and np.array_equal(got[1], b.numpy())

    def test_an_entry_that_was_never_written_is_finite(self) -> None:
        assert [float(x) for x in from_pairs(torch.zeros(1, dtype=torch.float16))] == [-128, 0]

    def test_values_out_of_range_become_the_largest(self, pairs_bundle: Bundle) -> None:
        attention = PairedRingAttention(pairs_bundle.config.temporal)
        scale = torch.ones(1, 1, 4)
        ring = attention.stored(torch.tensor([300.0, -300, 300, -300]).reshape(1, 1, 1, 4), scale)
        assert attention.read(ring).flatten().tolist() == [127, -127, 119, -119]


class RoundTrip(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return from_pairs(to_pairs(a, b))


def all_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """a and b [255, 239]."""
    a, b = torch.meshgrid(torch.arange(-127.0, 128), torch.arange(-119.0, 120), indexing="ij")
    return a.contiguous(), b.contiguous()


class TestPlans:
    def test_a_processor_holds_twice_the_conversations_of_float16(self) -> None:
        plain, narrow = (report_processor(None, 64 * 10**9, ["int4"], [], kv).plans[0][0] for kv in KINDS)
        stack = plain.config.temporal
        assert plain.session_nbytes - narrow.session_nbytes == 2 * stack.layers * 3000 * stack.dim
        assert narrow.fitting(64 * 10**9) >= 1.9 * plain.fitting(64 * 10**9)

    def test_a_gpu_counts_the_copies_of_one_layer(self) -> None:
        plain, narrow = (report_plans(None, ["rtx-4090"], ["int4"], [3000], None, kv) for kv in KINDS)
        few, many = (report.plans[0][0][0] for report in (plain, narrow))
        stack = few.config.temporal
        saved = 2 * stack.layers * 3000 * stack.dim
        copies = 2 * 2 * 3000 * stack.dim  # k and v of one layer in 16 bits
        assert few.session_nbytes - many.session_nbytes == saved - copies
        assert many.slots is not None and few.slots is not None and many.slots >= 1.7 * few.slots
