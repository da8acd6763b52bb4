"""How far a bundle of lower precision is from the float32 one, on the same forced steps."""

from dataclasses import dataclass

import numpy as np

from pplex.runtime.bundle import Bundle
from pplex.runtime.stages import Stages
from pplex.validate.golden import Floats, Tokens, teacher_forced


@dataclass(frozen=True)
class Forced:
    """What a bundle gives for S forced steps: hidden [S, dim], text logits [S, card], audio logits [S, K, card]."""

    hidden: Floats
    text: Floats
    audio: Floats


@dataclass(frozen=True)
class Drift:
    """How far apart two bundles are on the same steps.

    Cosine of the hidden state: mean and least of all steps. Mean Kullback-Leibler divergence of what is sampled from, in
    nats at temperature 1. How often the most probable token is the same.
    """

    hidden_cosine: float
    least_cosine: float
    text_kl: float
    audio_kl: float
    same_text: float
    same_audio: float


def force(bundle: Bundle, codes: Tokens) -> Forced:
    """Step one slot through the model inputs codes [T, 17], each step's targets being the next one's inputs; S is T - 1."""
    return Forced(
        *teacher_forced(
            Stages(bundle, slots=1, logits=True), bundle, codes, {step: step for step in range(len(codes) - 1)}
        )
    )


def drift(got: Forced, expected: Forced) -> Drift:
    """Compare two bundles' outputs for the same steps."""
    cosines = _cosines(got.hidden, expected.hidden)
    return Drift(
        hidden_cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        text_kl=_divergence(expected.text, got.text),
        audio_kl=_divergence(expected.audio, got.audio),
        same_text=float((got.text.argmax(-1) == expected.text.argmax(-1)).mean()),
        same_audio=float((got.audio.argmax(-1) == expected.audio.argmax(-1)).mean()),
    )


def _cosines(a: Floats, b: Floats) -> Floats:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines: Floats = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return cosines


def _divergence(expected: Floats, got: Floats) -> float:
    """Mean over all distributions of sum p log(p / q), for logits [..., card]."""
    log_p, log_q = _log_softmax(expected), _log_softmax(got)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
