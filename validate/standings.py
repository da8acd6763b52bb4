"""Measures how near every drawn token was to another outcome, to distinguish near ties from faults.

Called by `validate.recording` and `validate.golden`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.noise import FrameNoise, noise_of
from pplex.runtime.sampling import Sampling
from pplex.runtime.session import Session
from pplex.runtime.stages import Stages

Look = Callable[[Tokens], Floats]  # noise of tokens

NEAREST = 4  # outcomes of a draw that are stored
BEYOND_TOP_K = 8  # tokens after the last candidate that may take its place


@dataclass(frozen=True)
class Standings:
    """For each draw, the NEAREST tokens that could have been drawn, their distances, and the spread of the logits.

    tokens, distances [..., NEAREST]; spread [...]. A token's distance: logits must move this far towards each other until
    the token is drawn. It is 0 for the drawn token.
    """

    tokens: Tokens
    distances: Floats
    spread: Floats

    @classmethod
    def stack(cls, steps: Sequence["Standings"]) -> "Standings":
        return cls(*(np.stack([getattr(s, name) for s in steps]) for name in ("tokens", "distances", "spread")))

    def distance(self, index: tuple[int, ...], token: int) -> float:
        """The token's distance; infinite if it is not among the nearest."""
        found = self.distances[index][self.tokens[index] == token]
        return float(found[0]) if len(found) else math.inf


def standings(session: Session, recorded: FrameNoise | None = None) -> Standings:
    """Standings [1 + K, ...] of a session's last step, at first the one that opened it; `recorded` is its recorded noise.

    The runtime must have logits.
    """
    stages, row, sampling = session.runtime.stages, session.row, session.sampling
    noise = _recorded_noise(recorded) if recorded else _own_noise(stages, row)
    return Standings.stack([*_draws(stages, row, sampling, noise)])


def _draws(stages: Stages, row: int, sampling: Sampling, noise: Iterator[Look]) -> Iterator[Standings]:
    text, audio = stages.tensors("temporal")["text_logits"][row], stages.tensors("depth")["audio_logits"][row]
    settings = [(sampling.text_temperature, sampling.text_top_k)]
    settings += [(sampling.audio_temperature, sampling.audio_top_k)] * len(audio)
    for logits, look, (temperature, top_k) in zip((text, *audio), noise, settings, strict=False):
        near = _largest(logits, top_k + BEYOND_TOP_K)
        yield standing(near, logits[near].astype(np.float64), look(near), temperature, top_k, float(logits.std()))


def _own_noise(stages: Stages, row: int) -> Iterator[Look]:
    """The noise of each draw's tokens [n], from a slot's table."""
    for offset, stride in zip(stages.noise_offset[row].tolist(), stages.noise_stride[row].tolist(), strict=True):
        yield partial(noise_of, stages.noise[row], offset, stride)


def _recorded_noise(recorded: FrameNoise) -> Iterator[Look]:
    """The recorded noise of each draw's tokens [n]; 1 for tokens without a record."""
    of_audio = zip(recorded.audio_ids, recorded.audio, strict=True)
    for ids, draws in ((recorded.text_ids, recorded.text), *of_audio):
        known = dict(zip(ids.tolist(), draws.tolist(), strict=True))
        yield partial(_known, known)


def _known(noise: Mapping[int, float], tokens: Tokens) -> Floats:
    return np.array([noise.get(token, 1.0) for token in tokens.tolist()])


def _largest(logits: Floats, count: int) -> Tokens:
    """The tokens of the `count` largest logits, in descending order."""
    near = (
        np.argpartition(-logits, min(count, len(logits)) - 1)[:count] if count < len(logits) else np.arange(len(logits))
    )
    return near[np.argsort(-logits[near], kind="stable")].astype(np.int64)


def standing(tokens: Tokens, logits: Floats, noise: Floats, temperature: float, top_k: int, spread: float) -> Standings:
    """Standings of one draw. The tokens [n] are the candidates and a few more, in descending order of logits."""
    score = logits - temperature * np.log(noise.astype(np.float64))  # [n] in logits
    candidates = min(top_k, len(logits))
    winner = int(score[:candidates].argmax())
    second = np.delete(score[:candidates], winner).max(initial=-math.inf)
    joins = np.maximum(logits[candidates - 1] - logits, 0)  # [n] distance until the token is a candidate
    leaves = logits[winner] - (logits[candidates:].max(initial=-math.inf))  # until the winner is not a candidate
    leaves = np.where(np.arange(len(logits)) < candidates, leaves, logits[winner] - logits)
    distance = np.minimum(np.maximum(joins, score[winner] - score), np.maximum(leaves, second - score))
    distance[winner] = 0
    nearest = np.argsort(distance, kind="stable")[:NEAREST]
    missing = NEAREST - len(nearest)
    return Standings(
        np.pad(tokens[nearest], (0, missing), constant_values=-1),
        np.pad(distance[nearest], (0, missing), constant_values=np.inf),
        np.array(spread),
    )
