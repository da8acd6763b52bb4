"""Where a conversation of the engine leaves the reference's, and whether rounding explains it.

Two float32 engines agree to the last digits, so a token that wins by less than those digits may lose on another processor,
and what follows is another conversation. How near every draw of the reference is to another outcome is kept while it speaks.
The first token that differs must be one of those that were as near as the layers' tolerance allows.
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
from pplex.runtime.session import USER
from pplex.validate.boundaries import boundary_distances
from pplex.validate.offline_codec import latents_at_once
from pplex.validate.standings import Standings

# A hidden state that is off by the share of its length that is allowed moves logits by that share of their spread, a race
# is between two, and a few in a hundred draws are moved by more than twice as much.
SPREADS = 4
WIDER = 50  # times the allowed distance, in which draws are counted to know how many are nearer than it
CHANCE = 1e-3  # of more explained differences than are plausible, if engines were as far off as the tolerance allows


@dataclass(frozen=True)
class TokenTrace:
    """Tokens [F, 17] of a conversation; what was drawn for them, [F, 1 + 8, ...]; what the user said, [samples]."""

    name: str
    tokens: Tokens
    standings: Standings | None = None
    user: Pcm | None = None


@dataclass(frozen=True)
class Parting:
    """The first difference of two conversations: frame and stream of the tokens, and how near the reference was to it.

    `distance` is in `unit`; up to `allowed` rounding explains it. `equal_frames` come before any token that differs: text is
    drawn before the delayed codebooks of the frame before it, which follow it then.
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
        """Not of a code that was heard."""
        return not self.stream.startswith("user")

    def __str__(self) -> str:
        return (
            f"{self.conversation}, frame {self.frame}, {self.stream}: {self.got} instead of {self.expected}, "
            f"{self.distance:.2g} {self.unit} from a tie, and {self.allowed:.2g} is rounding"
        )


class Judge:
    """Finds where an engine's conversations leave the reference's, which have their standings."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, specs: Mapping[str, GraphSpec]):
        self._checkpoint, self._config = checkpoint, config
        self._rounding = specs["temporal"].tolerances["rounding"]
        self._latent = specs["mimi_encode"].tolerances["layer_error"]

    def parting(self, ours: TokenTrace, theirs: TokenTrace) -> Parting | None:
        """The first token that differs, in the order in which they came to be; None where all are equal."""
        differs = np.argwhere(ours.tokens != theirs.tokens)
        if not len(differs):
            return None
        frame, stream = min(map(tuple, differs.tolist()), key=lambda place: self._when(*place))
        expected, got = (int(side.tokens[frame, stream]) for side in (theirs, ours))
        call, _ = self._when(frame, stream)
        if stream < USER:
            distance, allowed, unit = *self._of_draw(theirs, call, stream, got), "logits"
            name = "text" if stream == 0 else f"agent {stream - 1}"
        else:
            distance, allowed, unit = self._of_code(ours, call, stream - USER), self._latent, "of a latent's length"
            name = f"user {stream - USER}"
        return Parting(ours.name, frame, name, expected, got, distance, allowed, unit, int(differs[:, 0].min()))

    def _when(self, frame: int, stream: int) -> tuple[int, int]:
        """The call that made a token of a reply, and its place in it; what is heard counts from the next call on."""
        delay, latest = self._config.delays[stream], self._config.max_delay
        return (frame - latest + delay, stream) if stream < USER else (frame - latest, stream)

    def _of_draw(self, theirs: TokenTrace, call: int, stream: int, got: int) -> tuple[float, float]:
        found = theirs.standings
        assert found is not None, "a conversation without standings"
        if not 0 <= call < len(found.tokens):  # primed, and so forced
            return math.inf, 0.0
        return found.distance((call, stream), got), self._allowed(float(found.spread[call, stream]))

    def _allowed(self, spread: float | Floats) -> float:
        return SPREADS * self._rounding * spread  # type: ignore[return-value]

    def _of_code(self, ours: TokenTrace, call: int, codebook: int) -> float:
        if call < 0 or ours.user is None:
            return math.inf
        encoder = load("mimi_encode", self._checkpoint)
        assert isinstance(encoder, MimiEncoder)
        heard = ours.tokens[self._config.max_delay :, USER : USER + CODEBOOKS]  # [F, 8] in each call but the last
        latents = latents_at_once(encoder, self._config, frames(ours.user, self._config.frame_size)[: len(heard)])
        return float(boundary_distances(encoder.quantizer, latents, heard)[call, codebook])

    def plausible(self, reference: Sequence[TokenTrace]) -> int:
        """How many draws of the reference's conversations may be near ties that went the other way, but for CHANCE.

        Were the engine as far off as is allowed, all draws within that distance could differ: as many as a wider distance
        holds, in proportion.
        """
        expected = 0.0
        for conversation in reference:
            found = conversation.standings
            assert found is not None, "a conversation without standings"
            near = found.distances[..., 1] < WIDER * self._allowed(found.spread)
            expected += near.sum() / WIDER
        return poisson_limit(expected, CHANCE)


def poisson_limit(expected: float, chance: float) -> int:
    """The number that a Poisson count of this mean exceeds with at most this probability."""
    count, term = 0, math.exp(-expected)
    below = term
    while 1 - below > chance:
        count += 1
        term *= expected / count
        below += term
    return count
