"""The bundle of every golden folder equals the recorded reference: codes, PCM, hidden states, logits, tokens."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import TINY, golden_folders
from safetensors.numpy import load_file, save_file

from pplex.export.build import export_graph
from pplex.export.checkpoint import open_checkpoint
from pplex.export.tensor_tables import depth_embedding
from pplex.runtime.bundle import Bundle
from pplex.validate.golden import (
    Check,
    check_codec,
    check_conversation,
    check_teacher_forced,
    conversations,
    main,
)

each_golden = pytest.mark.parametrize("golden", golden_folders(), ids=lambda folder: folder.name)
BundleOf = Callable[..., Bundle]


each_kind = pytest.mark.parametrize("for_engines", [False, True], ids=["for ONNX Runtime", "for engines"])


def all_pass(checks: Iterable[Check]) -> bool:
    checks = list(checks)
    assert checks and all(check.passed for check in checks), [check for check in checks if not check.passed]
    return True


@each_golden
def test_codec_equals_the_golden_data_frame_by_frame(bundle_of: BundleOf, golden: Path) -> None:
    checkpoint = open_checkpoint(golden / "checkpoint")
    assert all_pass(check_codec(bundle_of(golden), checkpoint, golden))


@each_golden
@each_kind
def test_forced_steps_equal_the_golden_data_past_the_end_of_the_ring(
    bundle_of: BundleOf, golden: Path, for_engines: bool
) -> None:
    bundle = bundle_of(golden, for_engines=for_engines)
    steps = load_file(golden / "expected" / "lm_teacher_forced.safetensors")["steps"]
    assert steps.max() > bundle.config.temporal.capacity
    assert all_pass(check_teacher_forced(bundle, golden))


@each_kind
@pytest.mark.parametrize(
    "golden, name",
    [
        pytest.param(golden, name, id=f"{golden.name}-{name}")
        for golden in golden_folders()
        for name in conversations(golden)
    ],
)
def test_conversation_equals_the_golden_data(bundle_of: BundleOf, golden: Path, for_engines: bool, name: str) -> None:
    assert all_pass(check_conversation(bundle_of(golden, for_engines=for_engines), golden, name))


@pytest.mark.slow
@each_golden
def test_all_sixteen_depth_steps_equal_the_golden_data(bundle_of: BundleOf, golden: Path, tmp_path: Path) -> None:
    """The depth graph including the user's steps: the last one shows the full-ring rule of the reference."""
    eight = bundle_of(golden)
    config = replace(eight.config, depth_steps=16)
    for path in eight.folder.iterdir():
        if not path.name.startswith("depth."):
            os.symlink(path, tmp_path / path.name)
    checkpoint = open_checkpoint(golden / "checkpoint")
    if checkpoint.depth_sets < config.depth_steps and depth_embedding(7) not in checkpoint.tensors:
        pytest.skip("this checkpoint holds 8 depth steps, and lacks the table that the reference's 9th needs")
    export_graph("depth", checkpoint, config, tmp_path)
    sixteen = replace(eight, folder=tmp_path, config=config)
    assert all_pass(check_teacher_forced(sixteen, golden))
    assert all_pass(check_conversation(sixteen, golden, "greedy"))  # its prediction of the user is not the user's audio


@pytest.mark.parametrize(
    "file, tensor",
    [
        ("mimi_stream", "codes"),
        ("mimi_stream", "pcm_out"),
        ("lm_teacher_forced", "hidden"),
        ("lm_teacher_forced", "text_logits"),
        ("lm_teacher_forced", "audio_logits"),
        ("conversation_greedy", "tokens"),
        ("conversation_sampled", "tokens"),
        ("conversation_sampled", "pcm_out"),
        ("conversation_wav_voice", "tokens"),
        ("conversation_wav_voice", "prompt_steps"),
    ],
)
def test_one_changed_value_fails(tiny_bundle: Bundle, tmp_path: Path, file: str, tensor: str) -> None:
    os.symlink(TINY / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "expected").mkdir()
    values = load_file(TINY / "expected" / f"{file}.safetensors")
    flat = values[tensor].reshape(-1)
    flat[0] = flat[0] + 1 if np.issubdtype(flat.dtype, np.integer) else flat[0] + 0.01 * np.ptp(flat)
    save_file(values, tmp_path / "expected" / f"{file}.safetensors")
    assert not all(check.passed for check in checks_of(file, tiny_bundle, tmp_path))


def checks_of(file: str, bundle: Bundle, golden: Path) -> Iterable[Check]:
    if file == "lm_teacher_forced":
        return check_teacher_forced(bundle, golden)
    if file.startswith("conversation_"):
        return check_conversation(bundle, golden, file.removeprefix("conversation_"))
    checkpoint = open_checkpoint(golden / "checkpoint")
    return list(check_codec(bundle, checkpoint, golden))


@pytest.mark.slow
def test_program_prints_every_check(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(tiny_bundle.folder), str(TINY)) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 17 and all(line.startswith("ok ") for line in lines)


@pytest.mark.slow
def test_program_fails_with_the_wrong_bundle(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(TINY, tmp_path / "golden")
    stream = tmp_path / "golden" / "expected" / "mimi_stream.safetensors"
    values = load_file(stream)
    save_file({**values, "codes": np.roll(values["codes"], 1, axis=0)}, stream)
    assert main(str(tiny_bundle.folder), str(tmp_path / "golden")) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert [line.split("  ")[-1] for line in failed] == ["mimi codes, except for ties", "mimi pcm"]
