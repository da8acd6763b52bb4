"""Compares a bundle's temporal and depth graphs with the float32 reference. Both get the same forced tokens.

Called by the drift section and `bench.precision`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import voice_history
from pplex.export.layers import even_noise
from pplex.export.threads import in_threads
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.bundle import Voice
from pplex.runtime.config import ModelConfig
from pplex.runtime.ort import available_threads
from pplex.runtime.sampling import Sampling
from pplex.runtime.stages import Stages
from pplex.validate.golden import force_step
from pplex.validate.reference import WholeTemporal

Numbers = npt.NDArray[np.float64]

BLOCK = 64  # steps whose logits are in memory at a time
TIE = 1e-5  # nats: rounding decides between tokens whose reference probabilities are this close


@dataclass(frozen=True)
class Forced:
    """Outputs of a model for n forced steps: hidden [n, dim], text logits [n, card], audio logits [n, K, card]."""

    hidden: Floats
    text: Floats
    audio: Floats


@dataclass(frozen=True)
class Drift:
    """Differences of two models, step by step: text [T], audio [T, K].

    hidden [T]: 1 - cosine.
    *_kl: Kullback-Leibler divergence of the token distributions, in nats at temperature 1.
    *_same: 1 if the most probable token is the same, or tied with it.
    *_overlap: the share of the default top-k that both have.
    *_nll, *_own_nll: negative log-likelihood of the next token in nats, of the reference and of the model itself. NaN if the
    history has no next token.
    """

    hidden: Numbers
    text_kl: Numbers
    audio_kl: Numbers
    text_same: Numbers
    audio_same: Numbers
    text_overlap: Numbers
    audio_overlap: Numbers
    text_nll: Numbers
    text_own_nll: Numbers
    audio_nll: Numbers
    audio_own_nll: Numbers

    @classmethod
    def joined(cls, parts: list["Drift"]) -> "Drift":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class DriftSummary:
    """Means over all steps and codebooks; `least_cosine` is that of the worst step."""

    hidden_cosine: float
    least_cosine: float
    text_kl: float
    audio_kl: float
    same_text: float
    same_audio: float

    @classmethod
    def of(cls, drift: Drift) -> "DriftSummary":
        means = (drift.text_kl, drift.audio_kl, drift.text_same, drift.audio_same)
        return cls(
            float(1 - drift.hidden.mean()), float(1 - drift.hidden.max()), *(float(values.mean()) for values in means)
        )


def engine_blocks(stages: Stages, codes: Tokens) -> Iterator[Forced]:
    """Run T steps in slot 0 of `stages`, which must have logits.

    Step t gets column t of codes [T + 1, 17] as input. Its output tokens are forced to column t + 1.
    """
    text_logits, audio_logits = stages.tensors("temporal")["text_logits"], stages.tensors("depth")["audio_logits"]
    for start in range(0, len(codes) - 1, BLOCK):
        rows: list[tuple[Floats, Floats, Floats]] = []
        for step in range(start, min(start + BLOCK, len(codes) - 1)):
            force_step(stages, codes, step)
            stages.run("temporal", 1)
            stages.run("depth", 1)
            rows.append((stages.hidden[0].copy(), text_logits[0].copy(), audio_logits[0].copy()))
        yield Forced(*(np.stack(values) for values in zip(*rows, strict=True)))


@torch.inference_mode()
def reference_hidden(
    checkpoint: Checkpoint, config: ModelConfig, codes: Tokens, embedding: torch.Tensor | None = None
) -> tuple[WholeTemporal, torch.Tensor]:
    """The reference and its hidden states [T, dim] for codes [T + 1, 17].

    `embedding` [T, dim] of a voice is added to the embeddings of the codes.
    """
    steps = len(codes) - 1
    whole = WholeTemporal(checkpoint, config, steps, config.temporal.capacity)
    beside = torch.zeros(steps, config.temporal.dim) if embedding is None else embedding
    x = whole.embed(torch.from_numpy(codes[:-1]), beside)
    for attend, feed in whole.layers():
        x = x + attend(x)
        x = x + feed(x)
    return whole, whole.hidden(x)


def reference_blocks(checkpoint: Checkpoint, config: ModelConfig, codes: Tokens) -> Iterator[Forced]:
    """Like `engine_blocks`, with the torch modules in float32. The temporal transformer computes all steps at once."""
    whole, hidden = reference_hidden(checkpoint, config, codes)
    depth = weights.load("depth", checkpoint, config)
    target = torch.from_numpy(codes[1:].clip(min=0))

    def logits(start: int) -> Forced:
        with torch.inference_mode():
            return _forced(config, depth, whole, hidden[start : start + BLOCK], target[start : start + BLOCK])

    threads = available_threads()
    for start in range(0, len(hidden), threads * BLOCK):
        yield from in_threads(logits, range(start, min(start + threads * BLOCK, len(hidden)), BLOCK))


def _forced(
    config: ModelConfig, depth: torch.nn.Module, whole: WholeTemporal, hidden: torch.Tensor, tokens: torch.Tensor
) -> Forced:
    """Logits for hidden states [n, dim], with the next tokens [n, 17] forced."""
    noise, ones = even_noise(len(hidden), config.num_streams), torch.ones(len(hidden))
    audio = depth(hidden, tokens[:, 0], tokens[:, 1 : 1 + config.depth_steps], *noise, ones, ones.long())[1]
    return Forced(hidden.numpy(), whole.text_logits(hidden).numpy(), audio.numpy())


@torch.inference_mode()
def log_likelihoods(
    checkpoint: Checkpoint, config: ModelConfig, codes: Tokens, embedding: torch.Tensor
) -> tuple[Numbers, Numbers]:
    """Log-likelihoods of a history's tokens under the reference: of text [T] and audio [T, K]; NaN for no token.

    Step t gets column t of codes [T + 1, 17] plus embedding [T + 1, dim], and its tokens are those of column t + 1.
    """
    whole, hidden = reference_hidden(checkpoint, config, codes, embedding[:-1])
    depth, found = weights.load("depth", checkpoint, config), list[tuple[Numbers, Numbers]]()
    target = torch.from_numpy(codes[1:].clip(min=0))
    for start in range(0, len(hidden), BLOCK):
        x, tokens = hidden[start : start + BLOCK], target[start : start + BLOCK]
        forced = _forced(config, depth, whole, x, tokens)
        following = codes[1 + start : 1 + start + len(x)]
        text, audio = following[:, 0], following[:, 1 : 1 + config.depth_steps]
        found.append((_likelihoods(log_softmax(forced.text), text), _likelihoods(log_softmax(forced.audio), audio)))
    of_text, of_audio = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return of_text, of_audio


def voice_distance(stages: Stages, checkpoint: Checkpoint, config: ModelConfig, voice: Voice) -> float:
    """1 - cosine of the hidden states after a voice prompt, which slot 0 primes in chunks.

    Raises PromptError if the voice does not fit in the ring.
    """
    prompt = voice_history(config, voice)
    codes, embedding = prompt.codes.numpy(), prompt.embedding.numpy()
    stages.reset(0, len(codes))
    for start in range(0, len(codes) - 1, BLOCK):
        chunk = slice(start, min(start + BLOCK, len(codes) - 1))
        stages.run_forced(0, start, codes[chunk], embedding[chunk])
    stages.codes[0, 0], stages.position[0], stages.forced_text[0] = codes[-1], len(codes) - 1, 0
    stages.run("temporal", 1)
    following = np.full((1, codes.shape[1]), -1)
    _, expected = reference_hidden(checkpoint, config, np.concatenate([codes, following]), prompt.embedding)
    distance = float(1 - _cosines(stages.hidden[0], expected[-1].numpy()))
    stages.reset(0, len(codes))
    return distance


def drift(got: Iterator[Forced], expected: Iterator[Forced], codes: Tokens) -> Drift:
    """Compare two models' outputs for the forced steps of codes [T + 1, 17], block by block."""
    parts, step = list[Drift](), 1
    for a, b in zip(got, expected, strict=True):
        following = codes[step : step + len(a.hidden)]
        parts.append(compare(a, b, following[:, 0], following[:, 1 : 1 + a.audio.shape[1]]))
        step += len(following)
    return Drift.joined(parts)


def compare(got: Forced, expected: Forced, text: Tokens, audio: Tokens) -> Drift:
    """Compare outputs of n steps; text [n] and audio [n, K] are the next tokens."""
    sampling = Sampling()
    of_text = _compare_logits(got.text, expected.text, text, sampling.text_top_k)
    of_audio = _compare_logits(got.audio, expected.audio, audio, sampling.audio_top_k)
    pairs = zip(of_text, of_audio, strict=True)
    (text_kl, audio_kl), (text_same, audio_same), (text_overlap, audio_overlap), (text_nll, audio_nll), own = pairs
    return Drift(
        1 - _cosines(got.hidden, expected.hidden),
        text_kl,
        audio_kl,
        text_same,
        audio_same,
        text_overlap,
        audio_overlap,
        text_nll,
        own[0],
        audio_nll,
        own[1],
    )


def _compare_logits(got: Floats, expected: Floats, following: Tokens, top_k: int) -> tuple[Numbers, ...]:
    """Divergence, same choice, overlap of the top k, and both likelihoods, for logits [..., card]: [...] each."""
    log_p, log_q = log_softmax(expected), log_softmax(got)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    chosen = _at(log_p, got.argmax(-1))
    same = (log_p.max(-1) - chosen <= TIE).astype(np.float64)
    likelihoods = [-_likelihoods(log, following) for log in (log_p, log_q)]
    return divergence, same, _overlap(got, expected, min(top_k, got.shape[-1])), *likelihoods


def _likelihoods(log: Numbers, tokens: Tokens) -> Numbers:
    """The logarithms at the tokens; NaN for -1 and for an initial token, which no logit stands for."""
    known = (tokens >= 0) & (tokens < log.shape[-1])
    found: Numbers = np.where(known, _at(log, np.where(known, tokens, 0)), np.nan)
    return found


def _at(values: Numbers, index: Tokens) -> Numbers:
    picked: Numbers = np.take_along_axis(values, index[..., None], -1)[..., 0]
    return picked


def _overlap(got: Floats, expected: Floats, k: int) -> Numbers:
    """Share of the k largest logits of `expected` that are among the k largest of `got`."""
    among = np.zeros(got.shape, bool)
    np.put_along_axis(among, np.argpartition(got, -k, -1)[..., -k:], True, -1)
    shared: Numbers = np.take_along_axis(among, np.argpartition(expected, -k, -1)[..., -k:], -1).mean(-1)
    return shared


def _cosines(a: Floats, b: Floats) -> Numbers:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines: Numbers = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return cosines


def log_softmax(logits: Floats) -> Numbers:
    """Logarithms of the probabilities of logits [..., card]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Numbers = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
