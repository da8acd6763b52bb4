"""Conversations that are the same up to a near tie, which engines that add up in another order may decide otherwise."""

import numpy as np
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Session
from pplex.validate.parting import Judge, TokenTrace
from pplex.validate.standings import Standings, standings


def with_standings(session: Session, codes: Tokens) -> TokenTrace:
    """A session of a runtime with logits, that hears codes [F, 8]."""
    tokens, drawn = list[Tokens](), list[Standings]()
    for frame in codes:
        tokens.append(session.step_codes(frame))
        drawn.append(standings(session))
    return TokenTrace("conversation", np.stack(tokens), Standings.stack(drawn))


def assert_same_up_to_a_tie(bundle: Bundle, got: Tokens, expected: TokenTrace) -> None:
    """Tokens `got` [F, 17] of as many frames or fewer; the bundle is one of the tiny checkpoint."""
    shortened = TokenTrace(expected.name, expected.tokens[: len(got)], expected.standings)
    judge = Judge(open_checkpoint(TINY / "checkpoint"), bundle.config, bundle.specs)
    parting = judge.parting(TokenTrace("conversation", got), shortened)
    assert parting is None or parting.explained, str(parting)
