"""A random checkpoint in the hub's layout, for tests, demos and benchmarks: called by `pplex-export synth`.

Its weights mean nothing but behave: activations keep their scale through every layer, a change of sound changes the
codes, codes decode to audible sound, and the logits prefer some tokens without settling on one.
"""

import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from torch import Tensor

from pplex.export.checkpoint import (
    CONFIG_FILE,
    LM_FILE,
    MIMI_FILE,
    TEXT_TOKENIZER_FILE,
    VOICES_FILE,
    Checkpoint,
    Shapes,
    lm_tensors,
    mimi_tensors,
)
from pplex.export.mimi import MimiEncoder, Quantizer
from pplex.export.weights import load
from pplex.runtime.config import (
    CODEBOOKS,
    MIMI_PARTS,
    RELEASED_ARGUMENTS,
    SAMPLE_RATE_HZ,
    SINE_CODES,
    ModelConfig,
)
from pplex.runtime.errors import CheckpointError
from pplex.runtime.graphs import graph_specs, seanet_decoder

Array = npt.NDArray[Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Size:
    """What a size name stands for: the reference's arguments that are not the released ones, and a voice's length."""

    arguments: dict[str, dict[str, Any]]
    voice_frames: int


TINY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "lm": {
        "dim": 32, "text_card": 400, "num_heads": 2, "num_layers": 3, "context": 96, "depformer_dim": 16,
        "depformer_dim_feedforward": 66, "depformer_num_heads": 2, "depformer_num_layers": 2,
    },
    "seanet": {"dimension": 32, "n_filters": 4},
    "transformer": {
        "d_model": 32, "num_heads": 2, "num_layers": 2, "context": 24, "dim_feedforward": 64, "input_dimension": 32,
        "output_dimensions": [32],
    },
    "quantizer": {"dimension": 16, "n_q": 8, "input_dimension": 32, "output_dimension": 32},
}  # fmt: skip

SIZES = {"tiny": Size(TINY_ARGUMENTS, voice_frames=29), "full": Size({}, voice_frames=50)}

VOICE_NAMES = (*(f"NAT{sex}{i}" for sex in "FM" for i in range(4)), *(f"VAR{sex}{i}" for sex in "FM" for i in range(5)))

# A matrix of gain 1 keeps the deviation of what it multiplies. At these gains 32 layers multiply a rounding error by
# 2.5 (by 10 if all were 1.5), and one wrong entry in a ring of 90 moves the hidden state by 8 %: a mistake shows.
GAIN, EMBEDDING_STD = 1.0, 0.5
LM_GAINS = {"in_proj": 1.3, "out_proj": 0.8, "text_linear": 3.0, "linears": 1.5}
# ELU takes off a third of a unit normal's power, and a residual block adds to its stream.
CONV_GAIN, RESIDUAL_GAIN = 1.25, 0.6
SAMPLES_GAIN = 8.0  # of the convolution that reads samples, whose deviation in speech is about 0.1
NORM_STD, BIAS_STD, LAYER_SCALE = 0.1, 0.1, 0.3

CALIBRATION_SIGNALS, CALIBRATION_FRAMES = 4, 40
PEAK = 0.6  # of the calibration signals after the codec, full scale being 1
CODEBOOK_SPREAD = 0.7  # deviation of a codebook's entries over that of what it quantizes

PIECE = 1 << 22  # numbers drawn at a time
TRAINED_PIECES = 2000


def synthesize(
    out: Path, size: str, seed: int = 0, progress: Progress | None = None, depth_sets: int = 2 * CODEBOOKS
) -> Path:
    """Write a random checkpoint of `size` ("tiny" or "full") into the folder `out` and return `out`.

    The same seed gives the same bytes. `progress` is told bytes as they are written, `checkpoint_nbytes` in all.
    Raises CheckpointError for another size or number of depth sets, a folder in use, or a disk that is too full.
    """
    progress = progress or (lambda nbytes: None)
    needed = checkpoint_nbytes(size, depth_sets)
    _check_folder(out, needed)
    with _whole_folder(out) as folder:
        config = _write_config(folder, size)
        _write_tokenizer(folder / TEXT_TOKENIZER_FILE, config.text_card)
        _write_codec(folder / MIMI_FILE, config, seed, progress)
        _write_lm(folder / LM_FILE, lm_tensors(config, depth_sets), seed, progress)
        _write_voices(folder, config, SIZES[size].voice_frames, seed)
    return out


def checkpoint_nbytes(size: str, depth_sets: int = 2 * CODEBOOKS) -> int:
    """Bytes of all tensors of a checkpoint, which is what `progress` counts; the other files are small."""
    if size not in SIZES or depth_sets not in (CODEBOOKS, 2 * CODEBOOKS):
        raise CheckpointError(
            f"A checkpoint of size {size!r} with {depth_sets} depth sets cannot be made.\n"
            f"Ask for one of {', '.join(SIZES)}, with {CODEBOOKS} or {2 * CODEBOOKS} depth sets."
        )
    with TemporaryDirectory() as folder:
        config = _write_config(Path(folder), size)
    return 2 * _numbers(lm_tensors(config, depth_sets)) + 4 * _numbers(mimi_tensors(config))


def _numbers(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _check_folder(out: Path, nbytes: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder.\nName a new folder, or remove this one first.")
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir():
        raise CheckpointError(f"{out} cannot be made: {parent} is a file.\nName another folder.")
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise CheckpointError(
            f"The checkpoint takes {nbytes / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} GB free.\n"
            "Make room, or name a folder on another disk."
        )


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and goes when it does not."""
    out = out.resolve()
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(out)  # an empty folder of that name gives way
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_config(folder: Path, size: str) -> ModelConfig:
    """config.json: complete where the sizes are not the released ones, and bare like the hub's where they are."""
    data: dict[str, Any] = {"model_type": "personaplex"}
    if changed := SIZES[size].arguments:
        arguments = {part: {**released, **changed[part]} for part, released in RELEASED_ARGUMENTS.items()}
        data |= {"lm": arguments["lm"], "mimi": {part: arguments[part] for part in MIMI_PARTS}}
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(data, indent=2))
    return ModelConfig.from_checkpoint(path)


# Random numbers


def _generator(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for every tensor, or piece of one: in what order they are drawn makes no difference."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _normal(seed: int, name: str, count: int, mean: float, std: float) -> Tensor:
    """`count` float32 numbers."""
    numbers = _generator(seed, name).standard_normal(count, dtype=np.float32)
    numbers *= np.float32(std)
    if mean:
        numbers += np.float32(mean)
    return torch.from_numpy(numbers)


# The language model


def _write_lm(path: Path, shapes: Shapes, seed: int, progress: Progress) -> None:
    _write_tensors(path, "BF16", shapes, _ahead(_lm_pieces(shapes, seed)), progress)


def _lm_pieces(shapes: Shapes, seed: int) -> Iterator[Callable[[], Array]]:
    """The file's data in order, cut so that a large tensor is never whole in memory."""
    for key, shape in shapes.items():
        table, count = _table(*_lm_moments(key, shape)), math.prod(shape)
        for start in range(0, count, PIECE):
            yield partial(_drawn, table, seed, f"{key}/{start}", min(PIECE, count - start))


@cache
def _table(mean: float, std: float) -> Array:
    """The 65536 quantiles of a normal distribution in bfloat16, as int16.

    To pick one of them with 16 random bits is four times as fast as to draw a float32 number and round it.
    """
    quantiles = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    table: Array = (mean + std * quantiles).to(torch.bfloat16).view(torch.int16).numpy()
    return table


def _drawn(table: Array, seed: int, name: str, count: int) -> Array:
    picks = _generator(seed, name).integers(len(table), size=count, dtype=np.uint16)
    # No pick is out of range: to wrap them is only the fastest mode, and one that lets other threads run.
    return table.take(picks, mode="wrap")


def _lm_moments(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation of a tensor's numbers."""
    if key.endswith("alpha"):
        return 1.0, NORM_STD
    if re.search(r"(^|_)emb\.", key):
        return 0.0, EMBEDDING_STD
    gain = next((gain for part, gain in LM_GAINS.items() if part in key), GAIN)
    return 0.0, gain / math.sqrt(shape[-1])


# The codec


def _write_codec(path: Path, config: ModelConfig, seed: int, progress: Progress) -> None:
    shapes = mimi_tensors(config)
    tensors = {key: _codec_tensor(seed, key, shape) for key, shape in shapes.items()}
    with _one_thread():
        _calibrate(tensors, config, seed)
    _write_tensors(path, "F32", shapes, (tensors[key].contiguous().numpy() for key in shapes), progress)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: a sum's last bits would differ with the number of cores, and with them the file's bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _codec_tensor(seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith(("_initialized", "cluster_usage", "embedding_sum")):
        return torch.ones(shape)  # the calibration replaces a codebook
    return _normal(seed, key, math.prod(shape), *_codec_moments(key, shape)).reshape(shape)


def _codec_moments(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation of a tensor's numbers."""
    if "norm" in key:
        return float(key.endswith("weight")), NORM_STD
    if "layer_scale" in key:
        return LAYER_SCALE, LAYER_SCALE / 10
    if key.endswith("bias"):
        return 0.0, BIAS_STD
    fan_in = math.prod(shape[1:])
    if "convtr" in key:  # the stride is half the kernel, so two taps of every channel meet in a sample
        fan_in = 2 if key.startswith("upsample") else 2 * shape[0]
    return 0.0, _codec_gain(key) / math.sqrt(fan_in)


def _codec_gain(key: str) -> float:
    if key.startswith("encoder.model.0."):
        return SAMPLES_GAIN
    if ".block.3." in key:
        return RESIDUAL_GAIN
    return CONV_GAIN if ".model." in key else GAIN


def _calibrate(tensors: dict[str, Tensor], config: ModelConfig, seed: int) -> None:
    """Set the codebooks from what they are to quantize, then the last convolution to a sound of a known peak."""
    signals = [speech_like(CALIBRATION_FRAMES, config.frame_size, seed=i) for i in range(CALIBRATION_SIGNALS)]
    pcm = torch.from_numpy(np.stack(signals)).reshape(CALIBRATION_SIGNALS, CALIBRATION_FRAMES, 1, -1)
    checkpoint = Checkpoint(Path(), config, config.stored_depth_sets, dict.fromkeys(tensors, _InMemory(tensors)))
    encoder = load("mimi_encode", checkpoint)
    assert isinstance(encoder, MimiEncoder)
    latents = stream_codec("mimi_encode", config, encoder.latent, pcm)  # [B, F, dim]
    codes = _set_codebooks(tensors, encoder.quantizer, latents.flatten(0, 1), seed)
    codes = codes.reshape(CALIBRATION_SIGNALS, CALIBRATION_FRAMES, CODEBOOKS)
    sound = stream_codec("mimi_decode", config, load("mimi_decode", checkpoint), codes)
    _set_peak(tensors, seanet_decoder(config.mimi).last.key, sound)


@dataclass(frozen=True)
class _InMemory:
    """Tensors by key, read as an open safetensors file is."""

    tensors: dict[str, Tensor]

    def get_tensor(self, key: str) -> Tensor:
        return self.tensors[key]


def stream_codec(graph: str, config: ModelConfig, step: Callable[..., Any], inputs: Tensor) -> Tensor:
    """Take inputs [B, F, ...] frame by frame through `step`: what it returns before its new state, [B, F, ...]."""
    slots = len(inputs)
    state = [
        torch.zeros([slots if size == "B" else int(size) for size in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in graph_specs(config)[graph].state
    ]
    outputs = []
    for frame in inputs.unbind(1):
        output, *present = step(frame, torch.ones(slots, dtype=torch.bool), *state)
        state = present[0] if isinstance(present[0], list) else present  # latent() returns its state as one list
        outputs.append(output)
    return torch.stack(outputs, 1)


def _set_codebooks(tensors: dict[str, Tensor], quantizer: Quantizer, latents: Tensor, seed: int) -> Tensor:
    """Draw every codebook around what reaches it; returns the codes of the latents [N, dim]: [N, 8]."""
    codes = []
    for part, project in (("rvq_first", quantizer.semantic), ("rvq_rest", quantizer.acoustic)):
        rest = project(latents)  # [N, codebook_dim], what is left for the next codebook
        for key in [key for key in tensors if re.match(rf"quantizer\.{part}\..*\.embedding_sum", key)]:
            size = len(tensors[key])
            entries, usage = _entries(rest, size, seed, key), _usage(size, seed, key)
            tensors[key] = entries * usage[:, None]
            tensors[key.replace("embedding_sum", "cluster_usage")] = usage
            codes.append(torch.cdist(rest, entries).argmin(1))
            rest = rest - entries[codes[-1]]
    return torch.stack(codes[:CODEBOOKS], 1)


def _entries(rest: Tensor, size: int, seed: int, key: str) -> Tensor:
    """Codebook entries with the mean of `rest` [N, dim] and its correlations, nearer to the mean: [size, dim].

    In many dimensions, of entries spread as wide as the data the few shortest ones would be nearest to everything.
    """
    mean = rest.mean(0)
    mixture = _normal(seed, key, size * len(rest), 0.0, CODEBOOK_SPREAD / math.sqrt(len(rest))).reshape(size, -1)
    return mean + mixture @ (rest - mean)


def _usage(size: int, seed: int, key: str) -> Tensor:
    usage = _generator(seed, f"{key}/usage").uniform(0.5, 50.0, size)
    return torch.from_numpy(usage.astype(np.float32))


def _set_peak(tensors: dict[str, Tensor], last: str, sound: Tensor) -> None:
    """Scale the last convolution, whose output was `sound`, to PEAK around zero."""
    mean = sound.mean()
    scale = PEAK / (sound - mean).abs().max()
    tensors[f"{last}.weight"] = tensors[f"{last}.weight"] * scale
    tensors[f"{last}.bias"] = (tensors[f"{last}.bias"] - mean) * scale


def speech_like(frames: int, frame_size: int, seed: int) -> Array:
    """Sound with what a codec meets in speech: harmonics of a moving pitch under two moving formants, bursts of noise
    and pauses. [frames * frame_size] float32, within 0.5.
    """
    generator = np.random.default_rng(seed)
    time_s = np.arange(frames * frame_size) / SAMPLE_RATE_HZ

    def curve(rate_hz: float, low: float, high: float) -> Array:
        knots = generator.uniform(low, high, int(time_s[-1] * rate_hz) + 2)
        return np.interp(time_s * rate_hz, np.arange(len(knots)), knots)

    pitch_hz, formants_hz = curve(3, 80, 280), (curve(6, 250, 900), curve(6, 900, 2800))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    voice = np.zeros_like(time_s)
    for k in range(1, 17):
        voice += sum(1 / (1 + ((k * pitch_hz - formant) / 150) ** 2) for formant in formants_hz) * np.sin(k * phase)
    voiced, hiss = curve(5, -0.6, 1).clip(0), curve(6, -2, 0.6).clip(0)
    pcm = voice * voiced + generator.standard_normal(len(time_s)) * hiss
    loud: Array = 0.5 * np.tanh(pcm / (3 * pcm.std()))
    return loud.astype(np.float32)


# The tokenizer

TEXT = """\
<system> You enjoy having a good conversation. <system>
Hello, how are you doing today? I am doing well, thank you so much for asking. What would you like to talk about?
Well, I was thinking about the weekend. We could drive to the lake if the weather is nice, or stay at home and cook.
That sounds lovely! I have not been there since last summer, and I still remember how warm the water was.
Do you know what time the market opens? I think it is at eight, but let me check that for you just to be sure.
Oh, really? That is quite early. Maybe my sister wants to come along, she always finds the best bread and cheese.
Sorry, could you say that again? You were breaking up a little, and I only heard the first part of your question.
Of course. I said that we should bring a few blankets, some fruit, and a good book for the quiet hours.
You are a wise and friendly teacher. Answer questions or give advice in a clear and engaging way.
Okay, great. So the train leaves at ten, right? Yes, exactly, and it takes about twenty minutes to get there.
Hmm, let me think. Yeah, I guess you could just walk, because the station is right next to the old bridge.
Thanks, I really appreciate your help. No problem at all, have a great day, and see you again soon!
""".splitlines()


def _write_tokenizer(path: Path, size: int) -> None:
    """A SentencePiece model trained on TEXT, filled up to `size` pieces with words that encoding never picks."""
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=trained, model_type="bpe", vocab_size=min(size, TRAINED_PIECES),
        hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    model = ModelProto.FromString(trained.getvalue())
    for i in range(len(model.pieces), size):
        model.pieces.add(piece=_word(i), score=-1e9, type=ModelProto.SentencePiece.UNUSED)
    model.trainer_spec.vocab_size = size
    path.write_bytes(model.SerializeToString(deterministic=True))


def _word(number: int) -> str:
    """A made-up word of three syllables, another one for every number below a million."""
    number = number * 7919 % 1_000_000  # neighbours look different
    syllables = [c + v for c in "bcdfghjklmnprstvwxyz" for v in "aeiou"]
    return "▁" + "".join(syllables[number // 100**i % 100] for i in range(3))


# The voices


def _write_voices(folder: Path, config: ModelConfig, frames: int, seed: int) -> None:
    """voices.tgz: a pickle of `embeddings` [T, 1, 1, dim] bfloat16 and `cache` [1, 17, 4] int64 for every voice."""
    codes = torch.stack([_voice_codes(config, frames, seed, name) for name in VOICE_NAMES])  # [V, T, 17]
    embeddings = _embed(folder / LM_FILE, codes)
    # Without a time of writing in it, the archive is the same every time.
    with gzip.GzipFile(folder / VOICES_FILE, "wb", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, embedding, voice in zip(VOICE_NAMES, embeddings, codes, strict=True):
            _add(archive, f"voices/{name}.pt", {"embeddings": embedding[:, None, None].clone(), "cache": _ring(voice)})


def _voice_codes(config: ModelConfig, frames: int, seed: int, name: str) -> Tensor:
    """A speaker saying anything while the user's side holds the tone of priming: [T, 17]."""
    agent = _generator(seed, f"voices/{name}").integers(config.audio_card, size=(frames, CODEBOOKS))
    text, user = np.full((frames, 1), config.text_padding), np.tile(SINE_CODES, (frames, 1))
    return torch.from_numpy(np.concatenate([text, agent, user], 1))


def _embed(lm: Path, codes: Tensor) -> Tensor:
    """What the language model's tables give for codes [V, T, 17]: [V, T, dim] bfloat16."""
    tables = ["text_emb.weight", *(f"emb.{i}.weight" for i in range(codes.shape[-1] - 1))]
    total = torch.zeros(())
    with safe_open(lm, framework="pt") as file:
        for i, table in enumerate(tables):
            total = total + file.get_tensor(table)[codes[..., i]].float()
    return total.to(torch.bfloat16)


def _ring(codes: Tensor) -> Tensor:
    """The last four columns [T, 17], column t in place t mod 4: [1, 17, 4]."""
    return codes[-4:].roll(len(codes) % 4, dims=0).t()[None].contiguous()


def _add(archive: tarfile.TarFile, name: str, voice: dict[str, Tensor]) -> None:
    data = io.BytesIO()
    torch.save(voice, data)
    entry = tarfile.TarInfo(name)
    entry.size = data.tell()
    data.seek(0)
    archive.addfile(entry, data)


# Files of tensors


def _write_tensors(path: Path, dtype: str, shapes: Shapes, pieces: Iterable[Array], progress: Progress) -> None:
    """A safetensors file of the tensors in `shapes`, their data coming in that order, in pieces of any length."""
    header = _header(dtype, shapes)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            file.write(piece.data)
            progress(piece.nbytes)


def _header(dtype: str, shapes: Shapes) -> bytes:
    """The JSON table at the file's start, padded so that the data is aligned to 8 bytes."""
    table, end, itemsize = {}, 0, {"BF16": 2, "F32": 4}[dtype]
    for key, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _ahead(jobs: Iterable[Callable[[], Array]]) -> Iterator[Array]:
    """The jobs' results in order, worked out by one thread a core, a few ahead of what is taken."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Array]] = deque()
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
