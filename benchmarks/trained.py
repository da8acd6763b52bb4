"""Trains a small model of this architecture from made-up dialogues, and writes it as a checkpoint in the hub's layout.

    python benchmarks/trained.py WORK --out CHECKPOINT     # needs libespeak-ng1 and the extras export and validate
    python benchmarks/trained.py WORK --report CHECKPOINT  # losses on held-out dialogues, statistics of the weights

WORK keeps the codec, the tokens and the language model, so that a run can go on after an interruption.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from trained_checkpoint import codec_tensors, in_memory, language_tensors, write_config, write_language
from trained_codec import LIVE, Codec, train_codec
from trained_codes import Numbers
from trained_corpus import entropies, make_corpus, voice_codes
from trained_decoder import train_decoder
from trained_dialogues import dialogues
from trained_language import Corpus, Language, compact, evaluate, train_language, unigram
from trained_sentences import corpus as sentences
from trained_sizes import CONFIG
from trained_statistics import HeldOut, losses, losses_table, statistics_table

from pplex.export.checkpoint import MIMI_FILE, TEXT_TOKENIZER_FILE, open_checkpoint
from pplex.export.mimi import MimiEncoder
from pplex.export.synth_tokenizer import write_tokenizer
from pplex.export.weights import load
from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.text import Tokenizer

CODEC_DIALOGUES, TRAINING, HELD_OUT = 60, 360, 24
FRAMES, COLUMNS = 240, 288  # of a dialogue, and of its tokens with the prompt
CODEC_STEPS, CODEC_SCHEDULE, CODEC_BATCH, CODEC_FRAMES, CODEC_RATE = 1201, 1800, 8, 12, 2e-3
DECODER_STEPS, DECODER_BATCH, DECODER_FRAMES, DECODER_RATE = 240, 4, 24, 2e-3
STEPS, BATCH, RATE = 1000, 8, 4e-3
RECORDINGS = 8  # dialogues
TONE_HZ, SETTLED = 440, 20  # the tone of priming, and the frame from which a steady sound has steady codes
KEEP_EVERY = 100  # steps between two copies of the model

Log = Callable[[dict[str, Any]], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--wavs", type=Path, help="write recordings of held-out dialogues into this folder instead")
    parser.add_argument("--report", type=Path, help="report on this checkpoint instead of training")
    parser.add_argument("--minutes", type=float, default=21, help="time for the language model [21]")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    given.work.mkdir(parents=True, exist_ok=True)
    if given.wavs:
        write_recordings(given.wavs)
    elif given.report:
        print(report(given.work, given.report))
    else:
        train(given.work, given.out, given.minutes)


def train(work: Path, out: Path | None, minutes: float) -> None:
    """Every part that WORK does not have yet, and the checkpoint."""
    log = _log(work / "log.jsonl")
    write_tokenizer(work / TEXT_TOKENIZER_FILE, CONFIG.text_card, sentences(400, seed=0))
    codec = _codec(work, log)
    numbers = _numbers(codec)
    encoder = load("mimi_encode", in_memory(CONFIG, codec_tensors(codec, numbers)))
    assert isinstance(encoder, MimiEncoder)
    training, held_out = _make_corpora(work, encoder, numbers, log)
    model = _language(work, training, held_out, minutes, log)
    if out:
        out.mkdir(parents=True)
        write_config(out)
        save_file(codec_tensors(_with_decoder(work, codec, log), numbers), work / MIMI_FILE)
        for name in (MIMI_FILE, TEXT_TOKENIZER_FILE):
            (out / name).write_bytes((work / name).read_bytes())
        write_language(out, language_tensors(model, CONFIG, numbers), CONFIG, voice_codes(CONFIG, encoder))


def report(work: Path, folder: Path) -> str:
    """Losses and statistics of the checkpoint in `folder`, and of an untrained one."""
    numbers, (training, kept) = _numbers(_codec(work, lambda row: None)), _corpora(work)
    held_out = HeldOut(numbers.expanded(kept.columns), kept.first)
    untrained = language_tensors(_new_language(), CONFIG, numbers)
    models = {"untrained": in_memory(CONFIG, untrained), "trained": open_checkpoint(folder)}
    columns = {name: losses(model, CONFIG, held_out) for name, model in models.items()}
    columns["frequencies"] = unigram(training, kept, compact(CONFIG, LIVE))
    return f"{losses_table(columns)}\n\n{statistics_table(models, CONFIG, held_out)}"


def _log(path: Path) -> Log:
    """Appends a line of JSON to the file."""
    begun = time.monotonic()

    def write(row: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"minutes": round((time.monotonic() - begun) / 60, 2), **row}) + "\n")

    return write


def write_recordings(folder: Path) -> None:
    """The speech of a few held-out dialogues as WAV files: for `validate --wavs` and `build --calibration`."""
    folder.mkdir(parents=True, exist_ok=True)
    spoken = dialogues(RECORDINGS, FRAMES, lambda word: [], CONFIG.text_padding, seed=4)
    for index, dialogue in enumerate(spoken):
        for who, pcm in (("user", dialogue.user), ("agent", dialogue.agent)):
            soundfile.write(folder / f"{index}_{who}.wav", pcm.ravel(), SAMPLE_RATE_HZ)


def _codec(work: Path, log: Log) -> Codec:
    """The trained codec: filters stay random, and projections, norms and codebooks learn."""
    codec, path = Codec(CONFIG), work / "codec.pt"
    if not path.exists():
        settings = (CODEC_STEPS, CODEC_SCHEDULE, CODEC_BATCH, CODEC_FRAMES, CODEC_RATE)
        train_codec(codec, _codec_sound(), *settings, lambda row: log({"part": "codec", **row}))
        torch.save(codec.state_dict(), path)
    codec.load_state_dict(torch.load(path))
    return codec.eval()


def _with_decoder(work: Path, codec: Codec, log: Log) -> Codec:
    """The codec with its decoder trained further, filters included."""
    path = work / "decoder.pt"
    if not path.exists():
        torch.manual_seed(1)
        settings = (DECODER_STEPS, DECODER_BATCH, DECODER_FRAMES, DECODER_RATE)
        train_decoder(codec, _codec_sound(), *settings, lambda row: log({"part": "decoder", **row}))
        torch.save(codec.state_dict(), path)
    codec.load_state_dict(torch.load(path))
    return codec.eval()


def _codec_sound() -> Pcm:
    """The speech [F, 1920] that the codec learns from."""
    spoken = dialogues(CODEC_DIALOGUES, FRAMES, lambda word: [], CONFIG.text_padding, seed=1)
    return np.concatenate([side for dialogue in spoken for side in (dialogue.agent, dialogue.user)])


@torch.inference_mode()
def _numbers(codec: Codec) -> Numbers:
    """The numbers of the live entries: those of silence and of the tone are the released codec's."""
    frames = codec.config.mimi.transformer.capacity // 2
    time_s = np.arange(frames * CONFIG.frame_size) / SAMPLE_RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * TONE_HZ * time_s).astype(np.float32)
    pcm: Pcm = np.stack([np.zeros_like(tone), tone]).reshape(2, frames, -1)
    codes = codec(torch.from_numpy(pcm))[2][:, SETTLED:]  # [2, n, 8]
    silence, heard = codes.mode(1).values.numpy()
    return Numbers.chosen(silence, heard, codec.books.usage.numpy(), CONFIG.audio_card)


def _make_corpora(work: Path, encoder: MimiEncoder, numbers: Numbers, log: Log) -> tuple[Corpus, Corpus]:
    if not (work / "corpora.npz").exists():
        tokenizer, parts = Tokenizer(work / TEXT_TOKENIZER_FILE), dict[str, Any]()
        for name, count, seed in (("training", TRAINING, 2), ("held_out", HELD_OUT, 3)):
            spoken = [*dialogues(count, FRAMES, tokenizer.encode, CONFIG.text_padding, seed)]
            made = make_corpus(CONFIG, encoder, tokenizer, numbers, spoken, COLUMNS, seed)
            parts |= {f"{name}_columns": made.columns.astype(np.int16), f"{name}_first": made.first}
        np.savez(work / "corpora.npz", **parts)
        training, held_out = _corpora(work)
        text = held_out.columns[:, 1:, 0]
        shares = {"padding": float((text == CONFIG.text_padding).mean()), "end_of_padding": float((text == 0).mean())}
        log({"part": "corpus", **shares, **entropies(training, LIVE)})
        log({"part": "unigram", **unigram(training, held_out, compact(CONFIG, LIVE))})
    return _corpora(work)


def _corpora(work: Path) -> tuple[Corpus, Corpus]:
    kept = np.load(work / "corpora.npz")
    training, held_out = (
        Corpus(kept[f"{name}_columns"].astype(np.int64), kept[f"{name}_first"]) for name in ("training", "held_out")
    )
    return training, held_out


def _language(work: Path, training: Corpus, held_out: Corpus, minutes: float, log: Log) -> Language:
    model, path = _new_language(), work / "language.pt"
    if not path.exists():

        def note(row: dict[str, float]) -> None:
            log({"part": "language", **row})
            if row["step"] % KEEP_EVERY == 0:
                torch.save(model.state_dict(), work / "language_so_far.pt")

        log({"part": "random", **evaluate(model, held_out)})
        train_language(model, training, STEPS, BATCH, RATE, minutes, note)
        log({"part": "held out", **evaluate(model, held_out)})
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path))
    return model


def _new_language() -> Language:
    return Language(compact(CONFIG, LIVE), CONFIG.audio_card - LIVE)


if __name__ == "__main__":
    main()
