"""Finds the first difference of two conversations, and whether rounding explains it.

The logits of two float32 engines differ in the last digits. If two tokens are nearer to each other than that, another
processor may draw the other token, and the rest of the conversation differs. So the reference records how near every draw
was to another outcome (its standings). The tolerance of the layers must explain the first different token. Called by the
conversation section.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pplex.export.checkpoint import Checkpoint
from pplex.export.mimi import MimiEncoder
from pplex.export.weights import load
from pplex.runtime.arrays import Floats, Pcm, Tokens
from pplex.runtime.audio import frames
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.token_path import USER
from pplex.validate.boundaries import boundary_distances
from pplex.validate.offline_codec import latents_at_once
from pplex.validate.standings import Standings

# If a hidden state has the allowed relative error e, a logit moves by about e times the spread of the logits. A draw
# compares two logits, so both may move; in a few percent of draws they move by more than twice as much. Hence 4.
SPREADS = 4
# Draws within this multiple of the allowed distance are counted, to estimate the number within the allowed distance.
WIDER = 50
# Probability of a false alarm: an engine with the largest allowed error has more near ties than `plausible`.
CHANCE = 1e-3


@dataclass(frozen=True)
class TokenTrace:
    """Tokens [F, 17] of a conversation, and the user's sound [samples].

    standings [1 + F, 1 + 8, ...] of the draws: the first ones are made before the first frame, see TokenPath.lead.
    """

    name: str
    tokens: Tokens
    standings: Standings | None = None
    user: Pcm | None = None


@dataclass(frozen=True)
class Parting:
    """The first different token of two conversations: frame, stream, and how near the reference was to the other token.

    `distance` is in `unit`; rounding explains it up to `allowed`. `equal_frames`: the frames before any different token.
    They may be fewer than `frame`, because text is drawn before the delayed codebooks of earlier frames.
    """

    conversation: str
    frame: int
    stream: str
    expected: int
    got: int
    distance: float
    allowed: float
    unit: str
    equal_frames: int

    @property
    def explained(self) -> bool:
        return self.distance <= self.allowed

    @property
    def is_of_a_draw(self) -> bool:
        """Whether the token was drawn. The user's codes are encoded instead."""
        return not self.stream.startswith("user")

    def __str__(self) -> str:
        return (
            f"{self.conversation}, frame {self.frame}, {self.stream}: {self.got} instead of {self.expected}, "
            f"{self.distance:.2g} {self.unit} from a tie; rounding explains up to {self.allowed:.2g}"
        )


class Judge:
    """Finds the first difference of an engine's conversation from the reference's, which has standings."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, specs: Mapping[str, GraphSpec]):
        self._checkpoint, self._config = checkpoint, config
        self._rounding = specs["temporal"].tolerances["rounding"]
        self._latent = specs["mimi_encode"].tolerances["layer_error"]
        self.exact = all(spec.exact for spec in specs.values())

    def parting(self, ours: TokenTrace, theirs: TokenTrace) -> Parting | None:
        """The first different token in the order of computation; None if all are equal."""
        differs = np.argwhere(ours.tokens != theirs.tokens)
        if not len(differs):
            return None
        frame, stream = min(map(tuple, differs.tolist()), key=lambda place: self._when(*place))
        expected, got = (int(side.tokens[frame, stream]) for side in (theirs, ours))
        step, _ = self._when(frame, stream)
        if stream < USER:
            distance, allowed, unit = *self._of_draw(theirs, step, stream, got), "logits"
            name = "text" if stream == 0 else f"agent {stream - 1}"
        else:
            distance, allowed, unit = self._of_code(ours, step - 1, stream - USER), self._latent, "of a latent's length"
            name = f"user {stream - USER}"
        return Parting(ours.name, frame, name, expected, got, distance, allowed, unit, int(differs[:, 0].min()))

    def _when(self, frame: int, stream: int) -> tuple[int, int]:
        """The step that computed a token, and the token's place in that step. Step i + 1 returns frame i.

        A step reads the user's codes before it draws.
        """
        delay, late = self._config.delays[stream], max(1, self._config.max_delay)
        return (
            (frame + 1 - late + delay, stream)
            if stream < USER
            else (frame + 2 - late, stream - len(self._config.delays))
        )

    def _of_draw(self, theirs: TokenTrace, step: int, stream: int, got: int) -> tuple[float, float]:
        found = theirs.standings
        assert found is not None, "a conversation without standings"
        if not 0 <= step < len(found.tokens):  # forced, because it was primed
            return math.inf, 0.0
        return found.distance((step, stream), got), self._allowed(float(found.spread[step, stream]))

    def _allowed(self, spread: float | Floats) -> float:
        return SPREADS * self._rounding * spread  # type: ignore[return-value]

    def _of_code(self, ours: TokenTrace, call: int, codebook: int) -> float:
        if call < 0 or ours.user is None:
            return math.inf
        encoder = load("mimi_encode", self._checkpoint)
        assert isinstance(encoder, MimiEncoder)
        heard = ours.tokens[max(1, self._config.max_delay) - 1 :, USER : USER + CODEBOOKS]  # [F, 8] in each call
        latents = latents_at_once(encoder, self._config, frames(ours.user, self._config.frame_size)[: len(heard)])
        return float(boundary_distances(encoder.quantizer, latents, heard)[call, codebook])

    def plausible(self, reference: Sequence[TokenTrace]) -> int:
        """How many of the reference's draws may differ as near ties. A correct engine has more with probability CHANCE only.

        In an engine with the largest allowed error, all draws within the allowed distance may differ. Their number is
        estimated from a wider distance.
        """
        expected = 0.0
        for conversation in reference:
            found = conversation.standings
            assert found is not None, "a conversation without standings"
            near = found.distances[..., 1] < WIDER * self._allowed(found.spread)
            expected += near.sum() / WIDER
        return poisson_limit(expected, CHANCE)


def poisson_limit(expected: float, chance: float) -> int:
    """The number that a Poisson count with mean `expected` exceeds with a probability of at most `chance`."""
    count, term = 0, math.exp(-expected)
    below = term
    while 1 - below > chance:
        count += 1
        term *= expected / count
        below += term
    return count
