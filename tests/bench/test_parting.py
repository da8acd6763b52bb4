"""Frames until two engines part: the command, and what it counts."""

import json
from collections.abc import Callable

import numpy as np
from click.testing import CliRunner
from folders import TINY

from pplex.bench.parting import _first_difference
from pplex.cli import main
from pplex.runtime.bundle import Bundle


def test_the_command_compares_batch_sizes_torch_and_other_bundles(bundle_of: Callable[..., Bundle]) -> None:
    exact, half = bundle_of(TINY), bundle_of(TINY, "fp16")
    arguments = [str(exact.folder), str(half.folder), str(exact.folder), "--reference", str(TINY / "checkpoint")]
    result = CliRunner().invoke(main, ["bench", "parting", *arguments, "--seeds", "3", "--frames", "20", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    itself, other = f"{exact.folder.name} (fp32)", f"{half.folder.name} (fp16)"
    assert (figures["seeds"], figures["maximum frames"]) == (3, 20)
    assert figures[f"{itself}: median frames"] == 20 and figures[f"{itself}: parted"] == 0
    for name in (other, "torch", "batches of 1 and 4"):
        assert 0 <= figures[f"{name}: median frames"] <= 20 and 0 <= figures[f"{name}: parted"] <= 3


def test_bundles_of_another_checkpoint_are_refused(tiny_bundle: Bundle, tmp_path: object) -> None:
    result = CliRunner().invoke(main, ["bench", "parting", str(tiny_bundle.folder), str(tmp_path)])
    assert result.exit_code == 1 and "pplex-export build" in result.stderr


def test_first_frame_with_a_different_token_is_the_parting() -> None:
    one = np.zeros((3, 10, 17), np.int64)
    other = one.copy()
    other[0, 4, 16] = other[0, 7, 0] = other[2, 0, 3] = 1
    assert _first_difference(one, other).tolist() == [4, 10, 0]
