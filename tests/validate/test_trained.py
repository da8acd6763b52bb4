"""A trained small model judges precisions: it has structure, the order of precisions holds, and damage lowers the grade."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from broken import Fault, broken
from folders import TRAINED
from onnx import numpy_helper

from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.runtime.bundle import Bundle
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.validate.drift import log_likelihoods
from pplex.validate.grade import GRADES
from pplex.validate.report.schema import Report
from pplex.validate.validation import ValidateOptions, validate_unchecked

NOISE = (0.03, 0.3, 1.0)  # in deviations of a matrix
FORCED = ValidateOptions(160, sections=("drift",), threads=1)
MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Checkpoint:
    return open_checkpoint(trained / "checkpoint")


@pytest.fixture(scope="module")
def reports(trained: Path, checkpoint: Checkpoint, bundle_of: MakeBundle) -> dict[str, Report]:
    """The drift of a bundle in each precision."""
    return {
        name: validate_unchecked(bundle_of(trained, name), checkpoint, FORCED).report
        for name in ("fp32", "fp16", "int8", "int4")
    }


def value(report: Report, name: str) -> float:
    found = next(measure.value for measure in report.measures if measure.name == f"drift.{name}")
    assert found is not None
    return found


def word(report: Report) -> str:
    assert report.grade is not None
    return report.grade.word


def test_it_expects_what_is_said_in_dialogues_that_it_has_not_heard(checkpoint: Checkpoint) -> None:
    """A model that gives each token its frequency has 1.5 nats of text, 6.2 in words only, and 4.2 of audio."""
    kept = np.load(TRAINED / "held_out.npz")
    text, words, audio = list[float](), list[float](), list[float]()
    for columns, first in zip(kept["columns"].astype(np.int64), kept["first"], strict=True):
        embedding = torch.zeros(len(columns), checkpoint.config.temporal.dim)
        of_text, of_audio = log_likelihoods(checkpoint, checkpoint.config, columns, embedding)
        own = slice(first - 1, None)
        text += (-of_text[own]).tolist()
        words += (-of_text[own])[columns[first:, 0] > 3].tolist()
        audio += (-of_audio[own]).ravel().tolist()
    assert np.mean(text) < 1.0 and np.mean(words) < 2.5 and np.mean(audio) < 3.6


@pytest.mark.parametrize("name", ["text_kl", "audio_kl"])
def test_fewer_bits_drift_more(reports: dict[str, Report], name: str) -> None:
    fp32, fp16, int8, int4 = (value(reports[precision], name) for precision in ("fp32", "fp16", "int8", "int4"))
    assert fp32 < fp16 < int8 < int4
    assert 5 * int8 < int4 < 1.0


def test_half_precision_is_indistinguishable_and_int4_is_not(reports: dict[str, Report]) -> None:
    assert [word(reports[name]) for name in ("fp32", "fp16")] == ["indistinguishable"] * 2
    assert word(reports["int4"]) != "indistinguishable"


def test_the_grade_falls_with_planted_noise_until_the_model_is_broken(
    trained: Path, checkpoint: Checkpoint, bundle_of: MakeBundle, tmp_path: Path
) -> None:
    bundle = bundle_of(trained)
    levels = [[*GRADES].index(word(damaged(bundle, checkpoint, noise, tmp_path / str(noise)))) for noise in NOISE]
    assert levels == sorted(levels) and levels[0] < levels[-1]
    assert [*GRADES][levels[-1]] == "broken"


def damaged(bundle: Bundle, checkpoint: Checkpoint, noise: float, folder: Path) -> Report:
    """The drift of a bundle with noise in all matrices of the language model."""
    for graph in LANGUAGE_GRAPHS:
        (folder / graph).mkdir(parents=True)
        bundle = broken(bundle, graph, _noisy(noise), folder / graph)
    return validate_unchecked(bundle, checkpoint, FORCED).report


def _noisy(noise: float) -> Fault:
    random = np.random.default_rng(0)

    def fault(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            weight = numpy_helper.to_array(tensor)
            if weight.ndim == 2 and weight.dtype == np.float32 and "emb" not in tensor.name:
                drawn = noise * weight.std() * random.standard_normal(weight.shape)
                tensor.CopyFrom(numpy_helper.from_array((weight + drawn).astype(np.float32), tensor.name))

    return fault
