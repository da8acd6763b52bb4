"""A frame's reply: codes, tokens, text and sound belong together."""

import numpy as np
from conversations import PCM, PERSONA, Heard, heard, talk_codes

from pplex.bench.host import IdleHost
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import SILENCE_CODES
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.validate.golden import decode


def test_a_step_without_sessions_gives_no_replies(one: Runtime) -> None:
    assert one.step({}) == {}
    assert one.step_codes({}) == {}


def test_a_step_allocates_its_replies_and_nothing_as_large(tiny_bundle: Bundle) -> None:
    """It allocates less than one byte per sample, so frames, noise and logits are not copied."""
    sessions = 16
    host = IdleHost(tiny_bundle, sessions)
    host.step()
    assert host.step_nbytes() < sessions * 1920


def test_a_reply_is_not_changed_by_later_frames(three: Runtime) -> None:
    with three.open("NATF0", PERSONA, seed=7) as first, three.open("NATM1", PERSONA, seed=8) as second:
        replies = [three.step({first: PCM[0, frame], second: PCM[1, frame]}) for frame in range(3)]
        kept = [heard(reply.values()) for reply in replies]
        for frame in range(3, 6):
            three.step({second: PCM[1, frame], first: PCM[0, frame]})
    assert [heard(reply.values()) for reply in replies] == kept


def test_frame_by_frame_equals_the_codec_on_the_whole(tiny_bundle: Bundle, alone: Heard) -> None:
    """The codec's first frame is the prompt's last one, as in the original code."""
    pcm = decode(Stages(tiny_bundle, slots=1), np.vstack([SILENCE_CODES, alone.tokens[:, 1:9]]))
    np.testing.assert_allclose(alone.pcm.reshape(-1), pcm[1920:], rtol=0, atol=1e-6)
    assert np.abs(pcm).max() > 0.01


def test_user_codes_come_out_in_their_own_frame_unchanged(tiny_bundle: Bundle, alone: Heard) -> None:
    stages, codes = Stages(tiny_bundle, slots=8), []
    stages.active[0] = True
    for stages.pcm_in[0, 0] in PCM[0]:
        stages.run("mimi_encode", 8)
        codes.append(stages.user_codes[0].copy())
    np.testing.assert_array_equal(alone.tokens[:, 9:], codes)


def test_step_codes_gives_the_tokens_of_step(eight: Runtime, alone: Heard) -> None:
    with eight.open("NATF0", PERSONA, seed=7) as session:
        np.testing.assert_array_equal(talk_codes(session, alone.tokens[:120, 9:]), alone.tokens[:120])


def test_text_pieces_are_those_of_the_text_tokens(one: Runtime, alone: Heard) -> None:
    assert "".join(alone.text)
    for token, text in zip(alone.tokens[:, 0].tolist(), alone.text, strict=True):
        if token < 4:
            assert text == ""
        elif one.tokenizer.byte(token) is None:
            assert text.endswith(one.tokenizer.piece(token))
