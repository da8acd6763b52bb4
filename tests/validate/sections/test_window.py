"""A ring window that is one entry too long or too short is found in any precision; an unfilled ring passes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from broken import Fault, broken, window_longer_by
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.export.exporter import export_graph
from pplex.runtime.bundle import Bundle
from pplex.runtime.stages import Stages
from pplex.validate.drift import engine_blocks
from pplex.validate.report.schema import Measure
from pplex.validate.sections.window import window_measure

CHECKPOINT = open_checkpoint(TINY / "checkpoint")
CODES = token_history(CHECKPOINT, unheard_pieces(CHECKPOINT.config, 2), 90)


def measure(bundle: Bundle, steps: int) -> Measure:
    stages, codes = Stages(bundle, 1, logits=True), CODES[: steps + 1]
    for _ in engine_blocks(stages, codes):
        pass
    before = stages.hidden[0].copy()
    found = window_measure("drift.window", stages, codes, bundle.config.temporal.capacity)
    stages.run("temporal", 1)
    np.testing.assert_array_equal(stages.hidden[0], before)  # the check has restored its changes
    return found


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder, precision = tmp_path_factory.mktemp(request.param), {**tiny_bundle.precision, "temporal": request.param}
    for path in tiny_bundle.folder.iterdir():
        if not path.name.startswith("temporal."):
            shutil.copy(path, folder)
    export_graph("temporal", CHECKPOINT, tiny_bundle.config, folder, precision)
    return replace(tiny_bundle, folder=folder, precision=precision)


@pytest.mark.parametrize("more", [-20, -1, 0, 1, 30])
def test_a_correct_ring_reads_the_right_entries(bundle: Bundle, more: int) -> None:
    found = measure(bundle, bundle.config.temporal.capacity + more)
    assert found.passed and found.value == 0 and found.where == ""


@pytest.mark.parametrize("fault, said", [
    (window_longer_by(1), "the first not in use is read"),
    (window_longer_by(-1), "the last in use is not read"),
])  # fmt: skip
def test_a_window_off_by_one_is_found(bundle: Bundle, tmp_path: Path, fault: Fault, said: str) -> None:
    found = measure(broken(bundle, "temporal", fault, tmp_path), bundle.config.temporal.capacity + 30)
    assert not found.passed and said in found.where
