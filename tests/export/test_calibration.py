"""Calibration: it records the inputs of the graphs, and refuses unusable files with a reason."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from folders import TINY
from safetensors.torch import save

from pplex.export import conversations as conversations_module
from pplex.export import threads, weights
from pplex.export.build import BuildOptions, build
from pplex.export.calibration import CALIBRATION_FILE, Calibration, calibrate, find_calibration, weights_mark
from pplex.export.checkpoint import VOICES_FILE, Checkpoint, open_checkpoint
from pplex.export.conversations import SPEECH_FRAMES, CalibrationSet, default_conversations
from pplex.export.layers import Linear, even_noise
from pplex.export.source import CheckpointSource
from pplex.export.voices import read_voices
from pplex.runtime.bundle import Voice
from pplex.runtime.errors import CalibrationError
from pplex.runtime.precision import parse_precision
from pplex.runtime.text import Tokenizer


def silent(nbytes: int) -> None:
    """A progress callback that prints nothing."""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(TINY / "checkpoint")


@pytest.fixture(scope="module")
def voices(checkpoint: Checkpoint) -> dict[str, Voice]:
    return read_voices(checkpoint.folder / VOICES_FILE, checkpoint.config)


@pytest.fixture(scope="module")
def conversations(checkpoint: Checkpoint, voices: dict[str, Voice]) -> CalibrationSet:
    tokenizer = Tokenizer(checkpoint.tokenizer)
    return default_conversations(checkpoint, tokenizer, voices)


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint, conversations: CalibrationSet) -> Calibration:
    return calibrate(checkpoint, checkpoint.config, conversations, silent)


def test_conversations_hold_voice_persona_and_both_speakers(
    checkpoint: Checkpoint, conversations: CalibrationSet, voices: dict[str, Voice]
) -> None:
    for item, voice in zip(conversations.items, [*voices.values(), *voices.values()], strict=False):
        steps = len(voice.embeddings)
        assert (item.codes[:steps] == -1).all() and (item.codes[steps:] >= 0).all()
        np.testing.assert_array_equal(item.embedding[:steps].numpy(), voice.embeddings)
        assert (item.embedding[steps:] == 0).all()
        assert len(item.codes) < checkpoint.config.temporal.capacity


def test_calibration_records_the_inputs_of_the_whole_module(
    checkpoint: Checkpoint, conversations: CalibrationSet, calibration: Calibration
) -> None:
    """One layer's weights at a time, and the released ring: the same numbers."""
    config, module = checkpoint.config, weights.load("temporal", checkpoint)
    seen: dict[str, list[torch.Tensor]] = {}
    for name, part in module.named_modules():
        if isinstance(part, Linear):
            seen[name] = []
            part.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0].flatten(0, -2)))
    stack = config.temporal
    rings = [torch.zeros(1, stack.heads, stack.capacity, stack.head_dim) for _ in range(2 * stack.layers)]
    for item in conversations.items:
        ones = torch.ones(1)
        start = torch.zeros(1, dtype=torch.int64)
        free = start - 1
        module(item.codes[None], item.embedding[None], start, free, free, *even_noise(1, 17), ones, start + 1, *rings)
    for name in ("layers.0.attention.in_proj", "layers.2.gating.linear_out"):
        x = torch.cat(seen[name])
        key = f"temporal.{name}.weight"
        assert calibration.largest[key] == pytest.approx(float(x.abs().max()), rel=1e-5)
        torch.testing.assert_close(calibration.mean_square[key], x.square().mean(0), rtol=1e-4, atol=1e-7)
    assert {key.removesuffix(".weight") for key in calibration.largest if key.startswith("temporal")} == {
        f"temporal.{name}" for name in seen
    }


def test_a_saved_calibration_loads_unchanged(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / CALIBRATION_FILE)
    again = Calibration.load(tmp_path / CALIBRATION_FILE, checkpoint.config, weights_mark(checkpoint))
    assert again.source == calibration.source
    for name, square in calibration.mean_square.items():
        assert torch.equal(again.mean_square[name], square)
        assert torch.equal(again.directions[name], calibration.directions[name])
        assert again.largest[name] == pytest.approx(calibration.largest[name])


def test_directions_hold_what_the_channels_share(checkpoint: Checkpoint, calibration: Calibration) -> None:
    for name in ("layers.1.attention.out_proj.weight", "text_linear.weight"):
        moments = calibration.moments("temporal", name)
        assert 0 < moments.directions.shape[1] <= len(moments.square) // 4
        shared = moments.directions.square().sum() / moments.square.sum()
        assert 0.2 < shared < 1 and (moments.own > 0).all()


def test_a_calibration_of_an_earlier_version_loads_without_directions(
    checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    earlier = Calibration(calibration.largest, calibration.mean_square, calibration.source)
    earlier.save(tmp_path / CALIBRATION_FILE)
    again = Calibration.load(tmp_path / CALIBRATION_FILE, checkpoint.config, weights_mark(checkpoint))
    moments = again.moments("temporal", "text_linear.weight")
    assert moments.directions.shape == (checkpoint.config.temporal.dim, 0)
    assert torch.equal(moments.square, calibration.mean_square["temporal.text_linear.weight"])


def test_the_number_of_threads_changes_no_bit(
    checkpoint: Checkpoint, voices: dict[str, Voice], calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (threads, conversations_module):
        monkeypatch.setattr(module, "available_threads", lambda: 3)
    given = default_conversations(checkpoint, Tokenizer(checkpoint.tokenizer), voices)
    again = calibrate(checkpoint, checkpoint.config, given, silent)
    assert again.largest == calibration.largest
    for name, square in calibration.mean_square.items():
        assert torch.equal(again.mean_square[name], square)
        assert torch.equal(again.directions[name], calibration.directions[name])


def test_calibration_of_another_model_is_refused(
    checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    square = {name: value[:-1] for name, value in calibration.mean_square.items()}
    Calibration(calibration.largest, square, {}).save(tmp_path / "other.safetensors")
    with pytest.raises(CalibrationError, match="other sizes"):
        Calibration.load(tmp_path / "other.safetensors", checkpoint.config, "")


def test_calibration_of_another_checkpoint_of_the_same_sizes_is_refused(
    checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    Calibration(calibration.largest, calibration.mean_square, {"weights": "others"}).save(
        tmp_path / "other.safetensors"
    )
    with pytest.raises(CalibrationError, match="other weights"):
        find_calibration(tmp_path / "other.safetensors", checkpoint, checkpoint.config, {}, silent)


def test_an_unused_calibration_is_refused(tmp_path: Path) -> None:
    options = BuildOptions(precision=parse_precision("int8"), calibration=tmp_path)
    with pytest.raises(CalibrationError, match="Only fp8, int4, mixed, and int8 for engines"):
        build(CheckpointSource(TINY / "checkpoint", None, None), tmp_path / "bundle", options)


@pytest.mark.parametrize(
    "content", [b"", b"no tensors at all", save({"a.mean_square": torch.ones(2)}, {"calibration": "{}"})]
)
def test_a_damaged_calibration_is_refused(checkpoint: Checkpoint, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(CalibrationError, match="is not a calibration"):
        find_calibration(tmp_path / "c.safetensors", checkpoint, checkpoint.config, {}, silent)


def test_a_folder_without_recordings_is_refused(
    checkpoint: Checkpoint, voices: dict[str, Voice], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CalibrationError, match="or holds no recording"):
        find_calibration(tmp_path, checkpoint, checkpoint.config, voices, silent)


def test_a_damaged_recording_is_named(checkpoint: Checkpoint, voices: dict[str, Voice], tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(CalibrationError, match=r"broken\.wav"):
        find_calibration(tmp_path, checkpoint, checkpoint.config, voices, silent)
    soundfile.write(tmp_path / "broken.wav", np.zeros(48_000), 24_000)
    with pytest.raises(CalibrationError, match=r"broken\.wav.*silent"):
        find_calibration(tmp_path, checkpoint, checkpoint.config, voices, silent)


def test_recordings_are_cut_into_both_sides_of_conversations(
    checkpoint: Checkpoint, voices: dict[str, Voice], tmp_path: Path
) -> None:
    frames, random = 2 * SPEECH_FRAMES + 5, np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "long.wav", random.normal(0, 0.1, 1920 * frames), 24_000)
    soundfile.write(tmp_path / "short.flac", random.normal(0, 0.1, 9000), 16_000)
    found = find_calibration(tmp_path, checkpoint, checkpoint.config, voices, silent)
    assert found.source["recordings"] == "4 pieces of 2 files"


def test_fp8_without_calibration_is_refused(tmp_path: Path) -> None:
    options = BuildOptions(precision=parse_precision("depth=fp8"), calibration=None)
    with pytest.raises(CalibrationError, match=r"fp8 \(depth\) needs"):
        build(CheckpointSource(TINY / "checkpoint", None, None), tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_voices_is_calibrated_without_a_voice(checkpoint: Checkpoint) -> None:
    found = default_conversations(checkpoint, Tokenizer(checkpoint.tokenizer), {})
    assert found.items and all((item.codes >= 0).all() and not item.embedding.any() for item in found.items)
    assert found.source["voices"] == ""
