"""Priming: a prompt in chunks equals one step by step, cached prompts equal fresh ones, bad prompts are refused."""

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conversations import (
    CODES,
    LONG_PERSONA,
    PCM,
    PERSONA,
    RECORDING,
    ROOM,
    WAV,
    assert_same,
    finish,
    is_clear,
    refused,
    ring_of,
    small_runtime,
    talk,
)
from ties import assert_same_up_to_a_tie, with_standings

from pplex.runtime.arrays import Array
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import AudioError, PromptError, SlotError
from pplex.runtime.session import Runtime, Session
from pplex.validate.parting import TokenTrace


@pytest.mark.parametrize("voice, others", [("NATF0", 29 + 12), (None, 11)])
def test_chunked_priming_equals_step_by_step(
    tiny_bundle: Bundle, uncached: Runtime, monkeypatch: pytest.MonkeyPatch, voice: str | None, others: int
) -> None:
    """The prompt takes 80 steps: 80 chunks of 1, 12 of 7, 2 of 64."""
    persona = np.random.default_rng(3).integers(4, 400, 80 - others).tolist()

    def primed(chunk: int) -> tuple[dict[str, Array], TokenTrace, int]:
        monkeypatch.setattr("pplex.runtime.priming.PRIMING_STEPS", chunk)
        session, chunks = finish(uncached.begin(voice, persona, seed=7))
        with session:
            rings = ring_of(session)
            return rings, with_standings(session, CODES[0, :20]), chunks

    rings, expected, steps = primed(1)
    assert steps == 80
    for chunk, count in ((7, 12), (64, 2)):
        got_rings, got, chunks = primed(chunk)
        assert chunks == count
        assert_same_up_to_a_tie(tiny_bundle, got.tokens, expected)  # chunks add up in another order
        for name, ring in got_rings.items():
            np.testing.assert_allclose(ring, rings[name], rtol=0, atol=1e-5, err_msg=name)
            used = 80 + 1  # the first tokens are drawn already
            assert ring[:, :used].any(axis=(0, 2)).all() and not ring[:, used:].any(), name


def refuse(*arguments: object) -> None:
    raise AssertionError("the temporal transformer was called")


@pytest.mark.parametrize("voice", ["NATM1", None, RECORDING])
def test_a_copied_prompt_equals_a_fresh_one(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, voice: str | None
) -> None:
    runtime = small_runtime(tiny_bundle, 2)

    def primed() -> tuple[Session, dict[str, Array], int]:
        session, chunks = finish(runtime.begin(voice, LONG_PERSONA, seed=7))
        return session, {**ring_of(session), "tokens": runtime.ring.save(session.row)[0]}, chunks

    session, fresh, chunks = primed()
    assert chunks > 0
    expected = talk(session, PCM[0, :50])
    after = ring_of(session)
    session.close()

    monkeypatch.setattr(runtime.stages, "run_forced", refuse)
    for row in (0, 1):  # the first session keeps its slot, so the second one gets another
        session, copied, chunks = primed()
        assert (session.row, chunks) == (row, 0)
        assert_same(copied, fresh)
        assert talk(session, PCM[0, :50]) == expected
        assert_same(ring_of(session), after)


def test_another_voice_or_persona_is_primed_again(one: Runtime, tmp_path: Path) -> None:
    def is_copied(voice: str | Path | None, persona: str | list[int]) -> bool:
        session, chunks = finish(one.begin(voice, persona, seed=0))
        session.close()
        return chunks == 0

    first = "A persona of its own."
    assert not is_copied("NATF0", first)
    for voice, persona in (("NATM1", first), (None, first), ("NATF0", "Another."), ("NATF0", "")):
        assert not is_copied(voice, persona)
    for again in (first, f"  {first} ", f"<system> {first} <system>", one.tokenizer.encode_persona(first)):
        assert is_copied("NATF0", again)
    assert is_copied("NATF0.pt", first)
    pcm, rate_hz = soundfile.read(WAV)
    soundfile.write(tmp_path / "backwards.wav", pcm[::-1], rate_hz)
    assert [is_copied(voice, first) for voice in (WAV, WAV, tmp_path / "backwards.wav")] == [False, True, False]


def test_the_same_recording_under_another_name_is_the_same_voice(one: Runtime, tmp_path: Path) -> None:
    os.symlink(WAV, tmp_path / "Copy.WAV")
    with one.open(WAV, [9, 9, 9], seed=1) as session:
        expected = talk(session, PCM[0, :5])
    session, chunks = finish(one.begin(tmp_path / "Copy.WAV", [9, 9, 9], seed=1))
    with session:
        assert chunks == 0
        assert talk(session, PCM[0, :5]) == expected


def test_prompts_are_cached_up_to_a_limit_in_bytes(tiny_bundle: Bundle) -> None:
    with small_runtime(tiny_bundle, prefix_bytes=0).open(None, [5] * 10, seed=0) as session:
        ring = session.runtime.stages.engines["temporal"].save(session.row, 21)
    nbytes = sum(array.nbytes for array in ring.values())

    def is_copied(runtime: Runtime, token: int) -> bool:
        session, chunks = finish(runtime.begin(None, [token] * 10, seed=0))
        session.close()
        return chunks == 0

    two = small_runtime(tiny_bundle, prefix_bytes=2 * nbytes)
    assert [is_copied(two, token) for token in (5, 6, 5, 6)] == [False, False, True, True]
    assert is_copied(two, 5)
    assert not is_copied(two, 7)  # replaces 6, the least recently used
    assert is_copied(two, 5)
    assert not is_copied(two, 6)
    almost_two = small_runtime(tiny_bundle, prefix_bytes=2 * nbytes - 1)
    assert [is_copied(almost_two, token) for token in (5, 6, 6, 5)] == [False, False, True, False]


def test_a_cache_of_zero_bytes_caches_nothing(uncached: Runtime, one: Runtime) -> None:
    with one.open("VARF2", PERSONA, seed=7) as session:
        expected = talk(session, PCM[0, :5])
    for _ in range(2):
        session, chunks = finish(uncached.begin("VARF2", PERSONA, seed=7))
        with session:
            assert chunks > 0
            np.testing.assert_array_equal(talk(session, PCM[0, :5]).tokens, expected.tokens)


def test_a_prompt_too_large_for_the_cache_evicts_no_other(tiny_bundle: Bundle) -> None:
    def chunks_of(runtime: Runtime, persona: list[int]) -> int:
        session, chunks = finish(runtime.begin(None, persona, seed=0))
        session.close()
        return chunks

    with small_runtime(tiny_bundle, prefix_bytes=0).open(seed=0) as session:
        nbytes = sum(array.nbytes for array in session.runtime.stages.engines["temporal"].save(0, 40).values())
    runtime = small_runtime(tiny_bundle, prefix_bytes=nbytes)
    assert chunks_of(runtime, [5] * 10) > 0
    assert chunks_of(runtime, [6] * 60) > 0
    assert chunks_of(runtime, [5] * 10) == 0


@pytest.mark.parametrize("chunks", [1, 5, 12, 29, 33])
@pytest.mark.parametrize("voice", ["NATF0", RECORDING])
def test_an_opening_closed_early_frees_its_slot(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, voice: str, chunks: int
) -> None:
    """Chunk 29 is in the middle of encoding the recording, chunk 33 in the middle of the prompt."""
    monkeypatch.setattr("pplex.runtime.priming.PRIMING_STEPS", 1)
    runtime = small_runtime(tiny_bundle)
    with closing(runtime.begin(voice, PERSONA, seed=7)) as opening:
        for _ in range(chunks):
            next(opening)
        with pytest.raises(SlotError, match="All 1 slots are taken"):
            runtime.open()
    assert is_clear(runtime)
    with runtime.open("NATF0", PERSONA, seed=7) as session:
        assert session.row == 0


def test_an_unstarted_opening_takes_no_slot(one: Runtime) -> None:
    opening = one.begin("NATF0")
    with one.open("NATF0") as session:
        assert session.row == 0
    opening.close()


@pytest.mark.parametrize("voice", ["NATF9", "", "natf0", "../NATF0", "voice.mp3"])
def test_unknown_voice_is_refused_with_the_known_ones(only: Runtime, voice: str) -> None:
    with refused(only, PromptError, r"Unknown voice .* NATF0, NATM1, VARF2; .*\.wav, \.flac, \.ogg"):
        only.open(voice)


def test_unusable_voice_recordings_are_refused(only: Runtime, tmp_path: Path) -> None:
    loud = np.random.default_rng(0).normal(0, 0.1, 24_000 * 10)
    soundfile.write(tmp_path / "short.wav", loud[:1000], 24_000)
    soundfile.write(tmp_path / "silent.wav", loud * 0, 24_000)
    soundfile.write(tmp_path / "long.wav", loud, 24_000)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF" + bytes(100))
    for name, error, message in (
        ("missing.wav", AudioError, "does not exist"),
        ("damaged.wav", AudioError, "damaged"),
        ("short.wav", AudioError, r"lasts 0\.04 s"),
        ("silent.wav", AudioError, "silent"),
        ("long.wav", PromptError, rf"takes {124 + 12 + 3} steps \(persona 3, .* remembers {ROOM}\."),
    ):
        with refused(only, error, message):
            only.open(tmp_path / name, [5, 6, 7])


@pytest.mark.parametrize("voice, others", [("NATF0", 29 + 12), (None, 11), pytest.param(WAV, 29 + 12, id="recording")])
def test_the_longest_persona_works_and_one_token_more_does_not(only: Runtime, voice: str | None, others: int) -> None:
    longest = ROOM - others
    message = (
        rf"takes {ROOM + 1} steps \(persona {longest + 1}, voice and silences {others}\), but the model remembers"
        rf" {ROOM}\. Shorten the persona to {longest} tokens"
    )
    with refused(only, PromptError, message):
        only.open(voice, [5] * (longest + 1))
    with only.open(voice, [5] * longest, seed=0) as session:
        assert only.ring.step[0] == 2 + ROOM
        assert talk(session, PCM[0, :5]).tokens.shape == (5, 17)


def test_a_persona_too_long_as_text_is_refused_with_the_numbers(only: Runtime) -> None:
    tokens = len(only.tokenizer.encode_persona("word " * 100))
    with refused(only, PromptError, rf"takes {tokens + 11} steps \(persona {tokens}, .* to {ROOM - 11} tokens"):
        only.open(None, "word " * 100)


@pytest.mark.parametrize("token", [-1, 401, 1 << 40])
def test_a_persona_of_other_tokens_is_refused(only: Runtime, token: int) -> None:
    with refused(only, PromptError, rf"token {token}; this model's text tokens are 0 to 400\."):
        only.open("NATF0", [5, token])
