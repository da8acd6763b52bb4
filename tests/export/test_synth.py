"""Synthetic checkpoints: sizes, files, and codes and tokens that vary."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click import Context
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from pplex.cli import main
from pplex.export import synth
from pplex.export.checkpoint import (
    CONFIG_FILE,
    LM_FILE,
    REQUIRED_FILES,
    TEXT_TOKENIZER_FILE,
    VOICES_FILE,
    Checkpoint,
    Shapes,
    open_checkpoint,
)
from pplex.export.synth import VOICE_NAMES, checkpoint_nbytes, synthesize
from pplex.export.synth_codec import stream_codec
from pplex.export.synth_tensors import write_tensors
from pplex.export.synth_tokenizer import write_tokenizer
from pplex.export.weights import load
from pplex.runtime.config import CODEBOOKS, RELEASED, SINE_CODES
from pplex.runtime.config_file import read_config
from pplex.runtime.errors import CheckpointError
from pplex.runtime.graphs import graph_specs
from pplex.runtime.synthetic_speech import speech_like

FRAMES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synth") / "checkpoint", "tiny", seed=7)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def eight_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A checkpoint of 8 depth sets made in an empty folder, and the bytes that progress reported."""
    written: list[int] = []
    folder = synthesize(tmp_path_factory.mktemp("eight"), "tiny", progress=written.append, depth_sets=8)
    return folder, sum(written)


@pytest.fixture(scope="module")
def codes(checkpoint: Checkpoint) -> Tensor:
    """Codes of two signals outside the calibration: [2, F, 8]."""
    frame_size = checkpoint.config.frame_size
    signals = np.stack([speech_like(FRAMES, frame_size, seed) for seed in (100, 101)])
    pcm = torch.from_numpy(signals).reshape(2, FRAMES, 1, frame_size)
    return stream_codec("mimi_encode", checkpoint.config, load("mimi_encode", checkpoint), pcm)


@pytest.fixture(scope="module")
def voices(folder: Path) -> dict[str, dict[str, Tensor]]:
    with tarfile.open(folder / VOICES_FILE) as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        return {name: torch.load(io.BytesIO(file.read()), weights_only=True) for name, file in files.items() if file}


def test_tiny_opens_with_its_sizes(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    assert checkpoint.depth_sets == 16
    assert (config.temporal.dim, config.temporal.capacity, config.text_card, config.audio_card) == (32, 256, 1000, 2048)
    assert (config.depth.dim, config.mimi.dim, config.mimi.stored_codebooks) == (16, 32, 8)
    assert config.frame_size == RELEASED.frame_size


def test_eight_depth_sets_open_too(eight_sets: tuple[Path, int]) -> None:
    checkpoint = open_checkpoint(eight_sets[0])
    assert checkpoint.depth_sets == 8


def test_an_empty_folder_is_filled(eight_sets: tuple[Path, int]) -> None:
    assert {path.name for path in eight_sets[0].iterdir()} == {CONFIG_FILE, *REQUIRED_FILES}


def test_progress_adds_up_to_the_announced_bytes(eight_sets: tuple[Path, int]) -> None:
    assert eight_sets[1] == checkpoint_nbytes("tiny", depth_sets=8)


def test_full_config_leaves_the_sizes_to_the_preset(tmp_path: Path) -> None:
    synth._write_config(tmp_path, "full")
    assert synth._config("full") == read_config(tmp_path / CONFIG_FILE).config == RELEASED
    assert json.loads((tmp_path / CONFIG_FILE).read_text()) == {"model_type": "personaplex"}


def test_same_seed_gives_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again, other = (synthesize(tmp_path / str(seed), "tiny", seed) for seed in (7, 8))
    for name in (CONFIG_FILE, *REQUIRED_FILES):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
        unseeded = name in (CONFIG_FILE, TEXT_TOKENIZER_FILE)
        assert ((other / name).read_bytes() == (folder / name).read_bytes()) == unseeded


def test_every_tensor_and_piece_has_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "PIECE", 1000)
    shapes: Shapes = {f"emb.{i}.weight": (2049, 32) for i in range(16)}
    pieces_written = (job() for job in synth._lm_pieces(shapes, seed=0, outliers=None))
    write_tensors(tmp_path / LM_FILE, "BF16", shapes, pieces_written, lambda nbytes: None)
    tables = load_file(tmp_path / LM_FILE)
    pieces = torch.cat([tables[key].flatten()[:65_000] for key in shapes]).reshape(-1, 1000)
    assert len(torch.unique(pieces, dim=0)) == len(pieces)
    assert 0.49 < pieces.float().std() < 0.51


def test_released_size_is_announced_without_writing() -> None:
    assert 16.5e9 < checkpoint_nbytes("full") < 18e9


def test_wide_has_the_released_widths_and_two_layers(tmp_path: Path) -> None:
    """Too large to build here. Its libraries choose the kernels of the released model."""
    synth._write_config(tmp_path, "wide")
    wide = read_config(tmp_path / CONFIG_FILE).config
    assert wide.temporal == replace(RELEASED.temporal, layers=2) and wide.depth == replace(RELEASED.depth, layers=2)
    assert (wide.text_card, wide.delays) == (RELEASED.text_card, RELEASED.delays)
    assert wide.mimi == synth._config("tiny").mimi
    assert 2.7e9 < checkpoint_nbytes("wide") < 2.8e9


def test_every_size_is_a_choice_of_the_command() -> None:
    size = next(option for option in main.get_command(Context(main), "synth").params if option.name == "size")
    assert list(size.type.choices) == list(synth.SIZES)


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="Choose a new folder"):
        synthesize(tmp_path, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(CheckpointError, match="not an empty folder"):
        synthesize(tmp_path / "mine.txt", "tiny")
    with pytest.raises(CheckpointError, match="is a file"):
        synthesize(tmp_path / "mine.txt" / "checkpoint", "tiny")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "checkpoint", "tiny", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 10**9))
    with pytest.raises(CheckpointError, match=r"needs 1\d\.\d GB, and .* has 2\.0 GB free"):
        synthesize(tmp_path / "new" / "checkpoint", "full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "depth_sets"), [("huge", 16), ("tiny", 12)])
def test_an_unknown_size_lists_the_choices(tmp_path: Path, size: str, depth_sets: int) -> None:
    with pytest.raises(CheckpointError, match=r"tiny, small, wide, full, with 8 or 16"):
        synthesize(tmp_path / "checkpoint", size, depth_sets=depth_sets)


def test_codes_of_speech_vary(codes: Tensor) -> None:
    for signal in codes:
        assert min(len(codebook.unique()) for codebook in signal.T) >= 50


def test_decoded_codes_are_audible_and_bounded(checkpoint: Checkpoint, codes: Tensor) -> None:
    anything = torch.randint(checkpoint.config.audio_card, codes.shape, generator=torch.Generator().manual_seed(0))
    decoder = load("mimi_decode", checkpoint)
    pcm = stream_codec("mimi_decode", checkpoint.config, decoder, torch.cat([codes, anything]))[:, :, 0]  # [4, F, 1920]
    assert pcm.abs().max() < 1
    assert ((pcm.std((1, 2)) > 0.03) & (pcm.std((1, 2)) < 0.3)).all()
    assert pcm.mean((1, 2)).abs().max() < 0.05
    heard = (pcm - pcm.mean(1, keepdim=True)).std((1, 2))  # without the mean of all frames
    assert (heard > 0.02).all()


def test_every_codebook_has_usage_counts(checkpoint: Checkpoint) -> None:
    books = [key.removesuffix("._initialized") for key in checkpoint.tensors if key.endswith("._initialized")]
    usage = torch.stack([checkpoint.read(f"{book}.cluster_usage") for book in books])
    assert len(books) == checkpoint.config.mimi.stored_codebooks
    assert usage.min() > 0 and usage.std() > 1
    assert all(checkpoint.read(f"{book}._initialized") == 1 for book in books)


@pytest.mark.parametrize("top_k", [1, 250])
def test_generated_tokens_vary(checkpoint: Checkpoint, codes: Tensor, top_k: int) -> None:
    tokens = _generate(checkpoint, codes[0], top_k)  # [F, 9]
    for stream in tokens.T:
        assert len(stream.unique()) >= 30
        assert stream.bincount().max() <= FRAMES // 4


def _generate(checkpoint: Checkpoint, user: Tensor, top_k: int) -> Tensor:
    """Text and agent tokens for user codes [F, 8], all streams without delays: [F, 9]."""
    config, generator = checkpoint.config, torch.Generator().manual_seed(0)
    temporal, depth = load("temporal", checkpoint), load("depth", checkpoint)
    specs, sizes = graph_specs(config)["temporal"].state, {"B": 1, "C": config.temporal.capacity}
    state = [torch.zeros([n if isinstance(n, int) else sizes[n] for n in spec.shape]) for spec in specs]
    column, generated = torch.tensor(config.initial_tokens), list[Tensor]()
    settings, free = (torch.tensor([0.8]), torch.tensor([top_k])), torch.tensor([-1])
    for t, heard in enumerate(user):
        table = torch.empty(1, config.noise_entries).exponential_(generator=generator)
        noise = table, torch.arange(17)[None] * 3000, torch.ones(1, 17, dtype=torch.int64)
        none = torch.zeros(1, 1, config.temporal.dim)
        given = column[None, None], none, torch.tensor([t]), free, free
        hidden, text, _, _, *state = temporal(*given, *noise, *settings, *state)
        audio, _ = depth(hidden, text, free.expand(1, CODEBOOKS), *noise, *settings)
        generated.append(torch.cat([text, audio[0]]))
        column = torch.cat([generated[-1], heard])
    return torch.stack(generated)


def _tokenizer(folder: Path, card: int) -> SentencePieceProcessor:
    write_tokenizer(folder / TEXT_TOKENIZER_FILE, card)
    return SentencePieceProcessor(model_file=str(folder / TEXT_TOKENIZER_FILE))


@pytest.mark.parametrize("card", [400, RELEASED.text_card])
def test_tokenizer_has_a_piece_for_every_id_and_round_trips(tmp_path: Path, card: int) -> None:
    tokenizer = _tokenizer(tmp_path, card)
    assert tokenizer.get_piece_size() == card
    assert [tokenizer.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert len({tokenizer.id_to_piece(i) for i in range(card)}) == card
    sentence = "<system> Zoë, you're 42 today — enjoy! 你好 <system>"
    ids = tokenizer.encode(sentence)
    assert tokenizer.decode(ids) == sentence
    assert 0 not in ids and not any(tokenizer.is_unused(i) for i in ids)
    assert all(isinstance(tokenizer.decode([i]), str) for i in range(card))


def test_filler_words_of_the_tokenizer_are_never_encoded(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, RELEASED.text_card)
    filler = tokenizer.id_to_piece(RELEASED.text_card - 1)
    assert tokenizer.is_unused(RELEASED.text_card - 1)
    assert RELEASED.text_card - 1 not in tokenizer.encode(filler.replace("▁", " "))


def test_has_the_voices_of_the_released_model(checkpoint: Checkpoint, voices: dict[str, dict[str, Tensor]]) -> None:
    assert sorted(voices) == sorted(f"voices/{name}.pt" for name in VOICE_NAMES) and len(voices) == 18
    config = checkpoint.config
    limits = torch.tensor(config.initial_tokens)[:, None]
    for voice in voices.values():
        assert voice["embeddings"].dtype == torch.bfloat16 and voice["embeddings"].shape == (
            29,
            1,
            1,
            config.temporal.dim,
        )
        assert voice["cache"].dtype == torch.int64 and voice["cache"].shape == (1, 17, 4)
        assert (voice["cache"] >= 0).all() and (voice["cache"][0] < limits).all()


def test_a_voice_ends_with_the_columns_of_its_ring(
    checkpoint: Checkpoint, voices: dict[str, dict[str, Tensor]]
) -> None:
    tables = [checkpoint.read(key) for key in ("text_emb.weight", *(f"emb.{i}.weight" for i in range(16)))]
    embeddings, cache = voices["voices/VARM4.pt"].values()
    for t in range(25, 29):
        column = cache[0, :, t % 4]
        rows = torch.stack([table[token].float() for table, token in zip(tables, column, strict=True)])
        assert torch.allclose(embeddings[t, 0, 0].float(), rows.sum(0), atol=0.02)
        assert tuple(column[9:].tolist()) == SINE_CODES


def test_voices_differ(voices: dict[str, dict[str, Tensor]]) -> None:
    assert len({voice["embeddings"].float().numpy().tobytes() for voice in voices.values()}) == len(voices)


def test_header_is_padded_to_eight_bytes(folder: Path) -> None:
    assert int.from_bytes((folder / LM_FILE).read_bytes()[:8], "little") % 8 == 0
