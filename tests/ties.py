"""Conversations that are equal up to a near tie: engines that sum in another order may decide it differently."""

import numpy as np
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Session
from pplex.validate.parting import Judge, TokenTrace
from pplex.validate.standings import Standings, standings


def with_standings(session: Session, codes: Tokens) -> TokenTrace:
    """Steps a session of a runtime with logits through codes [F, 8]."""
    tokens, drawn = list[Tokens](), [standings(session)]
    for frame in codes:
        tokens.append(session.step_codes(frame))
        drawn.append(standings(session))
    return TokenTrace("conversation", np.stack(tokens), Standings.stack(drawn))


def assert_same_up_to_a_tie(bundle: Bundle, got: Tokens, expected: TokenTrace) -> None:
    """Compare tokens `got` [F, 17] of as many frames or fewer; the bundle comes from the tiny checkpoint."""
    shortened = TokenTrace(expected.name, expected.tokens[: len(got)], expected.standings)
    judge = Judge(open_checkpoint(TINY / "checkpoint"), bundle.config, bundle.specs)
    parting = judge.parting(TokenTrace("conversation", got), shortened)
    assert parting is None or parting.explained, str(parting)
