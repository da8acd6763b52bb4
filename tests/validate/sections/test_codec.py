"""The codec section: correct engines pass, and each kind of fault fails its measure."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import TINY
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.export.mimi import MimiDecoder, MimiEncoder, Quantizer
from pplex.runtime.arrays import Floats
from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import HostDevice
from pplex.runtime.engine import Executor
from pplex.runtime.errors import AudioError
from pplex.runtime.graphs import graph_specs
from pplex.runtime.precision import CODEC_PRECISIONS, FP32
from pplex.runtime.stages import Stages
from pplex.runtime.synthetic_speech import speech_like
from pplex.validate.boundaries import boundary_distances, compare_codes
from pplex.validate.offline_codec import decode_at_once, encode_at_once, latents_at_once
from pplex.validate.reference import TorchExecutor
from pplex.validate.report.schema import Measure, Section
from pplex.validate.sections.codec import (
    Sounds,
    codec_section,
    codec_streaming_measures,
    codec_tolerances,
    sound_measures,
)
from pplex.validate.signal import onset_shift_ms

FRAMES = 32  # 64 steps; the transformers' rings hold 24
CHECKPOINT = open_checkpoint(TINY / "checkpoint")
CONFIG = CHECKPOINT.config
RECORDED = load_file(TINY / "expected" / "mimi_stream.safetensors")
PCM = RECORDED["pcm_in"].reshape(-1, CONFIG.frame_size)[:FRAMES]
CODES = RECORDED["codes"].T.astype(np.int64)
TOKENIZER = "tokenizer-e351c8d8-checkpoint125.safetensors"
Modules = dict[str, nn.Module]
TOLERANCES = {
    (graph, precision): codec_tolerances(graph_specs(CONFIG, {**FP32, graph: precision})[graph])
    for graph in ("mimi_encode", "mimi_decode")
    for precision in CODEC_PRECISIONS
}


@cache
def float32_modules() -> Modules:
    return {name: weights.load(name, CHECKPOINT) for name in FP32}


def engines(modules: Modules) -> Backend:
    """Executors that run these modules, and the checkpoint's own ones for the other graphs."""
    device = HostDevice()

    def load(bundle: Bundle, slots: int, spare: int) -> dict[str, Executor]:
        made = {**float32_modules(), **modules}
        return {name: TorchExecutor(made[name], spec, device) for name, spec in bundle.specs.items()}

    return Backend(device, load)


def stages(bundle: Bundle, device: str | Backend) -> Stages:
    return Stages(bundle, slots=1, device=device)


def half_precision(bundle: Bundle) -> tuple[Bundle, Backend]:
    """The bundle with a codec that computes in fp16."""
    halves: Modules = {}
    for graph, kind in (("mimi_encode", MimiEncoder), ("mimi_decode", MimiDecoder)):
        halves[graph] = kind(CONFIG, torch.float16).eval()
        exact = float32_modules()[graph].state_dict()
        dtypes = {name: weight.dtype for name, weight in halves[graph].named_parameters()}
        halves[graph].load_state_dict({name: exact[name].to(dtype) for name, dtype in dtypes.items()})
    fp16 = dict.fromkeys(halves, "fp16")
    return replace(bundle, precision={**bundle.precision, **fp16}), engines(halves)


def changed_checkpoint(folder: Path, key: str, change: Callable[[Floats], Floats]) -> Checkpoint:
    """The tiny checkpoint with one of the codec's tensors changed."""
    shutil.copytree(TINY / "checkpoint", folder)
    tensors = load_file(folder / TOKENIZER)
    tensors[key] = np.ascontiguousarray(change(tensors[key]))
    save_file(tensors, folder / TOKENIZER)
    return open_checkpoint(folder)


def by_name(measures: tuple[Measure, ...]) -> dict[str, Measure]:
    named = {measure.name: measure for measure in measures}
    assert len(named) == len(measures)
    return named


def failures(section: Section) -> set[str]:
    return {measure.name for measure in section.failures}


class TestSection:
    def test_a_float32_bundle_passes(self, tiny_bundle: Bundle) -> None:
        section = codec_section(tiny_bundle, CHECKPOINT, stages(tiny_bundle, "cpu"), PCM)
        measures = by_name(section.measures)
        assert not section.failures and section.key == "codec"
        assert measures["codec.code_agreement"].value == 1 and measures["codec.unexplained_codes"].value == 0
        assert 100 < (measures["codec.si_sdr_db"].value or 0) < math.inf
        assert [row[:3] for row in section.tables[0].rows] == [(i, 1.0, 0) for i in range(8)]
        agreement, levels = section.plots
        assert len(agreement.ticks) == len(agreement.series[0].y) == 8
        assert [len(series.y) for series in levels.series] == [FRAMES] * 2
        assert max(levels.series[1].y) < min(levels.series[0].y) - 80

    def test_half_precision_fails_the_float32_tolerances(self, tiny_bundle: Bundle) -> None:
        bundle, backend = half_precision(tiny_bundle)
        section = codec_section(bundle, CHECKPOINT, stages(bundle, backend), PCM)
        measures, rows = by_name(section.measures), section.tables[0].rows
        assert not section.failures
        assert 0.75 < (measures["codec.code_agreement"].value or 0) < 1
        assert 1e-4 < (measures["codec.boundary_distance"].value or 0) < 4e-3
        assert all(differ == ties + follow + unexplained for _, _, differ, ties, follow, unexplained, _ in rows)
        exact = {**TOLERANCES["mimi_encode", "fp32"], **TOLERANCES["mimi_decode", "fp32"]}
        for name, measured in {
            "boundary": "codec.boundary_distance",
            "si_sdr_db": "codec.si_sdr_db",
            "spectral_distance": "codec.spectral_distance",
            "sample_difference": "codec.sample_difference",
        }.items():
            assert not exact[name].allows(measures[measured].value)

    @pytest.mark.parametrize("codebook", [0, 1, 3, 7])
    def test_permuted_entries_are_named_by_their_codebook(self, tiny_bundle: Bundle, codebook: int) -> None:
        module = weights.load("mimi_encode", CHECKPOINT)
        assert isinstance(module, MimiEncoder)
        book = module.quantizer.codebooks[codebook]
        module.quantizer.codebooks[codebook] = nn.Parameter(book.roll(1, dims=0), requires_grad=False)
        section = codec_section(tiny_bundle, CHECKPOINT, stages(tiny_bundle, engines({"mimi_encode": module})), PCM)
        assert failures(section) == {"codec.code_agreement", "codec.unexplained_codes", "codec.boundary_distance"}
        wrong = by_name(section.measures)["codec.unexplained_codes"]
        assert (wrong.value, wrong.where) == (FRAMES, f"codebook {codebook}: {FRAMES}")

    def test_two_swapped_codebooks_are_named(self, tiny_bundle: Bundle) -> None:
        module = weights.load("mimi_encode", CHECKPOINT)
        assert isinstance(module, MimiEncoder)
        books = module.quantizer.codebooks
        books[2], books[5] = nn.Parameter(books[5].data), nn.Parameter(books[2].data)
        broken = stages(tiny_bundle, engines({"mimi_encode": module.requires_grad_(False)}))
        section = codec_section(tiny_bundle, CHECKPOINT, broken, PCM)
        assert by_name(section.measures)["codec.unexplained_codes"].where == f"codebook 2: {FRAMES}"

    def test_a_bundle_of_another_checkpoint_fails(self, tiny_bundle: Bundle, tmp_path: Path) -> None:
        key = "quantizer.rvq_rest.vq.layers.3._codebook.embedding_sum"
        other = changed_checkpoint(tmp_path / "other", key, lambda book: np.roll(book, 1, axis=0))
        section = codec_section(tiny_bundle, other, stages(tiny_bundle, "cpu"), PCM)
        assert by_name(section.measures)["codec.unexplained_codes"].where == f"codebook 4: {FRAMES}"
        assert "codec.si_sdr_db" in failures(section)

    def test_a_louder_decoder_fails(self, tiny_bundle: Bundle, tmp_path: Path) -> None:
        key = "decoder.model.14.conv.conv.weight"
        other = changed_checkpoint(tmp_path / "other", key, lambda weight: weight * 1.02)
        assert "codec.sample_difference" in failures(codec_section(tiny_bundle, other, stages(tiny_bundle, "cpu"), PCM))

    def test_a_silent_recording_passes(self, tiny_bundle: Bundle) -> None:
        silence = np.zeros((3, 1920), np.float32)
        assert not codec_section(tiny_bundle, CHECKPOINT, stages(tiny_bundle, "cpu"), silence).failures

    @pytest.mark.parametrize("pcm", [PCM.ravel(), PCM[:, :-1], PCM[:0], np.full((2, 1920), np.nan)], ids=len)
    @pytest.mark.parametrize("compare", [codec_section, codec_streaming_measures])
    def test_unusable_recordings_are_refused(
        self, tiny_bundle: Bundle, pcm: Floats, compare: Callable[..., object]
    ) -> None:
        with pytest.raises(AudioError, match=r"whole frames \[F, 1920\]"):
            compare(tiny_bundle, CHECKPOINT, stages(tiny_bundle, "cpu"), pcm)


class TestSounds:
    """The decoder's measures on sounds with attacks, which sounds of random weights lack."""

    SPEECH = speech_like(120, 1920, seed=7) * np.minimum(np.arange(120 * 1920) / 4800, 1).astype(np.float32)

    def measures(self, got: Floats, precision: str = "fp16") -> dict[str, Measure]:
        sounds = Sounds(got, self.SPEECH)
        shift = onset_shift_ms(*sounds.audible)
        return by_name(tuple(sound_measures(sounds, shift, CONFIG, TOLERANCES["mimi_decode", precision])))

    def test_softer_attacks_fail_onset_shift_only(self) -> None:
        soft, ramp = self.SPEECH.copy(), np.linspace(0, 1, 240)
        for time_s in onset_shift_ms(soft, soft).times_s:
            start = round(time_s * 24000)
            soft[start : start + 240] *= ramp
        found = self.measures(soft)
        failed = {name for name, measure in found.items() if not measure.passed}
        assert failed == {"codec.onset_shift_ms", "codec.sample_difference"}

    def test_noise_fails_si_sdr_but_not_onset_shift(self) -> None:
        noise = 1e-4 * np.random.default_rng(0).standard_normal(len(self.SPEECH)).astype(np.float32)
        assert all(measure.passed for measure in self.measures(self.SPEECH + noise).values())
        failed = {name for name, m in self.measures(self.SPEECH + noise, "fp32").items() if not m.passed}
        assert "codec.si_sdr_db" in failed and "codec.onset_shift_ms" not in failed

    def test_nan_fails_every_measure(self) -> None:
        broken = self.SPEECH.copy()
        broken[60000] = np.nan
        held = [measure for measure in self.measures(broken).values() if measure.tolerance]
        assert len(held) == 4 and not any(measure.passed for measure in held)


class TestAtOnce:
    def test_equals_the_recorded_reference_frame_by_frame(self) -> None:
        whole = RECORDED["pcm_in"].reshape(-1, CONFIG.frame_size)
        assert 2 * len(whole) > 4 * CONFIG.mimi.transformer.capacity
        encoder = weights.load("mimi_encode", CHECKPOINT)
        assert isinstance(encoder, MimiEncoder)
        latents = latents_at_once(encoder, CONFIG, whole)
        codes = compare_codes(encoder.quantizer, latents, encode_at_once(CHECKPOINT, whole), CODES, 1e-5)
        assert codes.differs.mean() < 0.01 and not (codes.differs & ~codes.explained & ~codes.follows).any()
        np.testing.assert_allclose(decode_at_once(CHECKPOINT, CODES), RECORDED["pcm_out"], atol=2e-6)

    def test_a_float32_bundle_streams_the_same(self, tiny_bundle: Bundle) -> None:
        measures = by_name(codec_streaming_measures(tiny_bundle, CHECKPOINT, stages(tiny_bundle, "cpu"), PCM))
        assert set(measures) == {"streaming.codec_codes", "streaming.codec_pcm"}
        assert all(measure.passed for measure in measures.values())
        assert measures["streaming.codec_codes"].value == 0

    def test_half_precision_streams_the_same(self, tiny_bundle: Bundle) -> None:
        bundle, backend = half_precision(tiny_bundle)
        assert all(m.passed for m in codec_streaming_measures(bundle, CHECKPOINT, stages(bundle, backend), PCM))

    @pytest.mark.parametrize("graph, failing", [("mimi_encode", "codec_codes"), ("mimi_decode", "codec_pcm")])
    def test_a_graph_that_forgets_a_tail_fails(self, tiny_bundle: Bundle, graph: str, failing: str) -> None:
        backend = engines({graph: Forgetful(float32_modules()[graph])})
        measures = codec_streaming_measures(tiny_bundle, CHECKPOINT, stages(tiny_bundle, backend), PCM)
        assert [m.name for m in measures if not m.passed] == [f"streaming.{failing}"]


class Forgetful(nn.Module):
    """A graph whose second state, the tail of a convolution, is zero in every frame."""

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output, position, tail, *others = self.graph(*inputs)
        return output, position, torch.zeros_like(tail), *others


class TestBoundaries:
    def quantizer(self) -> Quantizer:
        module = weights.load("mimi_encode", CHECKPOINT)
        assert isinstance(module, MimiEncoder)
        return module.quantizer

    def test_a_code_flips_only_if_the_latent_moves_further(self) -> None:
        quantizer, random = self.quantizer(), torch.Generator().manual_seed(0)
        latents = torch.randn(200, CONFIG.mimi.dim, generator=random) * 0.3
        moved = latents + torch.randn(latents.shape, generator=random) * 0.01
        distances = boundary_distances(quantizer, latents, quantizer.encode(moved).numpy())
        for half, project in ((slice(1), quantizer.semantic), (slice(1, 8), quantizer.acoustic)):
            unit = project(latents).square().sum(1).mean().sqrt()
            by = (project(moved - latents).norm(dim=1) / unit).numpy()
            flipped = distances[:, half].max(axis=1)
            assert (flipped > 0).sum() > 5 and (flipped <= by + 1e-6).all()

    def test_distance_is_measured_to_the_plane_between_the_entries(self) -> None:
        quantizer = self.quantizer()
        latents = torch.randn(1, CONFIG.mimi.dim, generator=torch.Generator().manual_seed(1))
        x, codes = quantizer.semantic(latents)[0], quantizer.encode(latents).numpy()
        near, far = quantizer.codebooks[0][codes[0, 0]], quantizer.codebooks[0][5]
        codes[0, 0] = 5
        across = (far - near) / (far - near).norm()
        expected = torch.dot((near + far) / 2 - x, across) / x.norm()
        assert boundary_distances(quantizer, latents, codes)[0, 0] == pytest.approx(expected.item(), rel=1e-4)

    def test_codes_outside_the_codebook_are_unexplained_and_later_codes_follow(self) -> None:
        quantizer = self.quantizer()
        latents = torch.randn(4, CONFIG.mimi.dim, generator=torch.Generator().manual_seed(2))
        expected = quantizer.encode(latents).numpy()
        got = expected.copy()
        got[0, 3], got[1, 0], got[2, 6:] = -1, CONFIG.mimi.codebook_size, -7
        compared = compare_codes(quantizer, latents, got, expected, 1e-4)
        assert list(map(tuple, np.argwhere(compared.unexplained))) == [(0, 3), (1, 0), (2, 6)]
        assert list(map(tuple, np.argwhere(compared.follows))) == [(2, 7)]
        assert compared.largest[[0, 3, 6]].tolist() == [math.inf] * 3 and not compared.largest[[1, 2, 4, 5, 7]].any()
