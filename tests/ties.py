"""Conversations that are the same up to a near tie, which engines that add up in another order may decide otherwise."""

import numpy as np
from folders import TINY

from pplex.export.checkpoint import open_checkpoint
from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Session
from pplex.validate.parting import Conversation, Judge
from pplex.validate.standings import Standings, standings


def with_standings(session: Session, codes: Tokens) -> Conversation:
    """A session of a runtime with logits, that hears codes [F, 8]."""
    tokens, drawn = list[Tokens](), list[Standings]()
    for frame in codes:
        tokens.append(session.step_codes(frame))
        drawn.append(standings(session))
    return Conversation("conversation", np.stack(tokens), Standings.stack(drawn))


def assert_same_up_to_a_tie(bundle: Bundle, got: Tokens, expected: Conversation) -> None:
    """Tokens `got` [F, 17] of as many frames or fewer; the bundle is one of the tiny checkpoint."""
    shortened = Conversation(expected.name, expected.tokens[: len(got)], expected.standings)
    judge = Judge(open_checkpoint(TINY / "checkpoint"), bundle.config, bundle.specs)
    parting = judge.parting(Conversation("conversation", got), shortened)
    assert parting is None or parting.explained, str(parting)
