"""How near every token that was drawn was to another outcome: what tells a near tie from a fault."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pplex.runtime.noise import noise_of
from pplex.runtime.session import Sampling, Session
from pplex.runtime.stages import Stages
from pplex.validate.golden import Floats, Tokens

NEAREST = 4  # outcomes of a draw that are kept
BEYOND_TOP_K = 8  # tokens after the last candidate that are looked at: one may take its place


@dataclass(frozen=True)
class Standings:
    """How near draws were to other outcomes: tokens and distances [..., NEAREST], and the spread of their logits [...].

    A distance is by how much two logits, or more in its place, would have to move towards each other until that token is
    drawn: 0 for the one that was.
    """

    tokens: Tokens
    distances: Floats
    spread: Floats

    @classmethod
    def stack(cls, steps: Sequence["Standings"]) -> "Standings":
        return cls(*(np.stack([getattr(s, name) for s in steps]) for name in ("tokens", "distances", "spread")))

    def distance(self, index: tuple[int, ...], token: int) -> float:
        """Infinite for a token that was not near."""
        found = self.distances[index][self.tokens[index] == token]
        return float(found[0]) if len(found) else math.inf


def standings(session: Session) -> Standings:
    """Of the step that a session has just taken, [1 + K, ...]: its runtime must have been made with logits."""
    stages, row, sampling = session.runtime.stages, session.row, session.sampling
    return Standings.stack([*_draws(stages, row, sampling)])


def _draws(stages: Stages, row: int, sampling: Sampling) -> Iterator[Standings]:
    text, audio = stages.tensors("temporal")["text_logits"][row], stages.tensors("depth")["audio_logits"][row]
    keys = zip(stages.noise_offset[row].tolist(), stages.noise_stride[row].tolist(), strict=True)
    settings = [(sampling.text_temperature, sampling.text_top_k)]
    settings += [(sampling.audio_temperature, sampling.audio_top_k)] * len(audio)
    for logits, key, (temperature, top_k) in zip((text, *audio), keys, settings, strict=True):
        near = _largest(logits, top_k + BEYOND_TOP_K)
        noise = noise_of(stages.noise[row], *key, near)
        yield standing(near, logits[near].astype(np.float64), noise, temperature, top_k, float(logits.std()))


def _largest(logits: Floats, count: int) -> Tokens:
    """The tokens of the `count` largest logits, in falling order."""
    near = (
        np.argpartition(-logits, min(count, len(logits)) - 1)[:count] if count < len(logits) else np.arange(len(logits))
    )
    return near[np.argsort(-logits[near], kind="stable")].astype(np.int64)


def standing(tokens: Tokens, logits: Floats, noise: Floats, temperature: float, top_k: int, spread: float) -> Standings:
    """Of one draw, from candidates and a few tokens more, in falling order of their logits: [n] each."""
    score = logits - temperature * np.log(noise.astype(np.float64))  # [n] the race, in logits
    candidates, others = score[:top_k], slice(top_k, None)
    order = np.argsort(-candidates, kind="stable")
    winner, second = order[0], candidates[order[min(1, len(order) - 1)]]
    distance = candidates[winner] - score
    # A winner that is the last candidate or nearly so also loses to the next one when it falls out of the top k.
    falls_out = logits[winner] - logits[top_k] if top_k < len(logits) else math.inf
    distance[:top_k] = np.minimum(distance[:top_k], np.maximum(falls_out, second - candidates))
    distance[others] = np.maximum(logits[len(candidates) - 1] - logits[others], np.maximum(distance[others], 0))
    distance[winner] = 0
    nearest = np.argsort(distance, kind="stable")[:NEAREST]
    missing = NEAREST - len(nearest)
    return Standings(
        np.pad(tokens[nearest], (0, missing), constant_values=-1),
        np.pad(distance[nearest], (0, missing), constant_values=np.inf),
        np.array(spread),
    )
