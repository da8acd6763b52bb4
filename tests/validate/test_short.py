"""The validation summary that a build writes to the manifest."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from broken import broken, changed
from click.testing import CliRunner
from folders import TINY

from pplex.cli import main
from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.bundle import Bundle, open_bundle, parity_text
from pplex.validate.memory import available_memory
from pplex.validate.sections.names import TOLERATED
from pplex.validate.short import FRAMES, check_build

CHECKPOINT = open_checkpoint(TINY / "checkpoint")


def test_a_correct_bundle_gets_a_summary(tiny_bundle: Bundle) -> None:
    parity = check_build(tiny_bundle, CHECKPOINT)
    assert json.loads(json.dumps(parity)) == parity
    assert (parity["checked"], parity["passed"], parity["frames"], parity["failures"]) == (True, True, FRAMES, [])
    assert set(parity["measures"]) == {*TOLERATED["graphs"], *TOLERATED["drift"]}
    text, grade = parity_text(parity).split("\n")
    assert text == "validated: every layer, and the drift over 128 frames, within tolerance"
    assert grade.strip().startswith("grade: indistinguishable: ")


def test_a_fault_is_recorded_with_its_layer(tiny_bundle: Bundle, tmp_path: Path) -> None:
    fault = changed("steps.2.out_proj.1.weight", lambda x: -x)
    parity = check_build(broken(tiny_bundle, "depth", fault, tmp_path), CHECKPOINT)
    assert parity["failures"][0].startswith("graphs.depth.layer_error: ")
    assert parity["failures"][0].endswith(" at steps.2.layers.1.attention")
    assert parity_text(parity).startswith("NOT the same model within its tolerances:\n  graphs.depth.layer_error")


def test_a_bundle_that_cannot_run_here_is_not_checked(tiny_bundle: Bundle) -> None:
    engines = {name: {**entry, "kind": "tensorrt"} for name, entry in tiny_bundle.manifest["engines"].items()}
    parity = check_build(replace(tiny_bundle, manifest={**tiny_bundle.manifest, "engines": engines}), CHECKPOINT)
    assert parity["checked"] is False and parity["reason"].startswith("it cannot run here: ")


def test_too_little_memory_skips_the_check(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() is None or 1 << 20 < (available_memory() or 0) < 1 << 50
    monkeypatch.setattr("pplex.validate.memory.available_memory", lambda: 1000)
    parity = check_build(tiny_bundle, CHECKPOINT)
    assert parity["checked"] is False and "GB of memory" in parity["reason"]


def test_a_build_can_skip_the_check_and_its_manifest_says_so(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    result = CliRunner().invoke(
        main, ["build", str(TINY / "checkpoint"), "--precision", "fp32", "--no-validate", "--out", str(out)]
    )
    assert result.exit_code == 0 and "not validated: built with --no-validate" in result.stderr
    assert open_bundle(out).manifest["parity"] == {
        "checked": False, "reason": "built with --no-validate",
    }  # fmt: skip
    inspected = CliRunner().invoke(main, ["inspect", str(out)])
    assert "not validated: built with --no-validate" in inspected.stdout
