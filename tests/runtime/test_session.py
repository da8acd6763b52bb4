"""Conversations depend on voice, persona, seed and the user's audio, and on nothing else."""

import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from folders import TINY
from ties import assert_same_up_to_a_tie, with_standings

from pplex.bench.host import IdleHost
from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import SINE_CODES, ModelConfig
from pplex.runtime.delays import DelayRing
from pplex.runtime.device import host_view
from pplex.runtime.errors import AudioError, NoiseError, PplexError, PromptError, SlotError
from pplex.runtime.noise import FrameNoise, Noise, noise_of
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Reply, Runtime, Session
from pplex.runtime.stages import Stages
from pplex.validate.golden import decode
from pplex.validate.parting import TokenTrace

FRAMES = 300  # three times around the tiny model's ring of 96, twelve times around its codec's
CAPACITY = 96
ROOM = CAPACITY - 2  # steps a prompt may take
PERSONA = "Hello there friend"
LONG_PERSONA = np.random.default_rng(3).integers(4, 400, 45).tolist()  # the ring is full a few frames later
WAV = str(TINY / "checkpoint/voices/synthetic.wav")
RECORDING = pytest.param(WAV, id="recording")

PCM = np.random.default_rng(1).normal(0, 0.1, (9, FRAMES, 1920)).astype(np.float32)  # [speaker, F, 1920]
CODES = np.random.default_rng(2).integers(0, 2048, (9, FRAMES, 8))  # [speaker, F, 8]


@dataclass(frozen=True)
class Heard:
    """A conversation's replies: tokens [F, 17], pcm [F, 1920], the text pieces."""

    tokens: Tokens
    pcm: Pcm
    text: list[str]

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        assert isinstance(other, Heard)
        same = np.array_equal(self.tokens, other.tokens) and np.array_equal(self.pcm, other.pcm)
        return same and self.text == other.text

    def start(self, frames: int) -> "Heard":
        return Heard(self.tokens[:frames], self.pcm[:frames], self.text[:frames])


def heard(replies: Iterable[Reply]) -> Heard:
    replies = list(replies)
    return Heard(
        np.stack([reply.tokens for reply in replies]),
        np.stack([reply.pcm for reply in replies]),
        [reply.text for reply in replies],
    )


def talk(session: Session, pcm: Pcm) -> Heard:
    return heard([session.step(frame) for frame in pcm])


def talk_codes(session: Session, codes: Tokens) -> Tokens:
    return np.stack([session.step_codes(frame) for frame in codes])


def ring_of(session: Session) -> dict[str, Array]:
    """The temporal transformer's ring entries of a session."""
    return session.runtime.stages.engines["temporal"].save(session.row, CAPACITY)


def state_of(runtime: Runtime, row: int) -> dict[str, Array]:
    """The state of all graphs for a slot, and its token ring."""
    state: dict[str, Any] = {}
    for graph, engine in runtime.stages.engines.items():
        state |= {f"{graph}.{name}": host_view(buffer)[row].copy() for name, buffer in engine.state.items()}
    tokens, provided, step = runtime.ring.save(row)
    return state | {"tokens": tokens, "provided": provided, "step": np.array(step)}


def is_clear(runtime: Runtime) -> bool:
    """Whether slot 0 is clear and has a new token ring."""
    new = DelayRing(1, runtime.config.delays, runtime.config.initial_tokens).save(0)
    expected = dict(zip(("tokens", "provided", "step"), new, strict=True))
    return all(np.array_equal(buffer, expected.get(name, 0 * buffer)) for name, buffer in state_of(runtime, 0).items())


def assert_same(got: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Bit for bit."""
    assert got.keys() == expected.keys()
    for name, array in got.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def finish(opening: Generator[None, None, Session]) -> tuple[Session, int]:
    """The opened session, and how many times it yielded on the way."""
    chunks = 0
    while True:
        try:
            next(opening)
        except StopIteration as end:
            return end.value, chunks
        chunks += 1


def small_runtime(bundle: Bundle, slots: int = 1, **options: Any) -> Runtime:
    """Every call is made for all slots, by one thread: the tiny graphs are too small for more."""
    return Runtime(bundle, slots, threads=1, batches=[slots], **options)


@pytest.fixture(scope="module")
def one(tiny_bundle: Bundle) -> Runtime:
    return small_runtime(tiny_bundle)


@pytest.fixture(scope="module")
def three(tiny_bundle: Bundle) -> Runtime:
    return small_runtime(tiny_bundle, 3)


@pytest.fixture(scope="module")
def eight(tiny_bundle: Bundle) -> Runtime:
    """Every call is made for eight slots, however many are in use, by as many threads as there are processors."""
    return Runtime(tiny_bundle, slots=8, batches=[8])


@pytest.fixture(scope="module")
def uncached(tiny_bundle: Bundle) -> Runtime:
    """Primes every session without the cache, and keeps the logits."""
    return small_runtime(tiny_bundle, 3, prefix_bytes=0, logits=True)


@pytest.fixture(scope="module")
def alone(tiny_bundle: Bundle) -> Heard:
    """A sampled conversation of the first and only session of a runtime."""
    runtime = Runtime(tiny_bundle, slots=8, batches=[8])
    return talk(runtime.open("NATF0", PERSONA, seed=7), PCM[0])


# Neighbours, batch sizes, slots.


def test_a_session_does_not_depend_on_its_neighbours(eight: Runtime, alone: Heard) -> None:
    """Seven others, each with its own voice, seed, sampling and start, pause, leave and come back in the middle."""
    voices, samplings = ["NATM1", "VARF2", None], [GREEDY, Sampling(), Sampling(2.0, 512, 3.0, 512), Sampling(0.1, 2)]
    others: dict[int, Session] = {}  # by speaker
    replies, sizes = [], set()

    def join(speaker: int, seed: int) -> None:
        others[speaker] = eight.open(
            voices[speaker % 3], "other " * speaker, seed=seed, sampling=samplings[speaker % len(samplings)]
        )

    with ExitStack() as stack:
        join(1, seed=1)
        join(2, seed=2)
        session = stack.enter_context(eight.open("NATF0", PERSONA, seed=7))
        stack.callback(lambda: [other.close() for other in others.values()])
        assert session.row == 2
        for frame in range(FRAMES):
            if frame % 9 == 3 and len(others) < 7 and frame < 60:
                join(len(others) + 1, seed=frame)
            if frame in (150, 200):  # one leaves from below the session's slot, one from above
                others.pop({150: 1, 200: 5}[frame]).close()
            if frame in (170, 230):
                join({170: 1, 230: 5}[frame], seed=7)
            speaking = {s: PCM[i, frame] for i, s in others.items() if (frame + i) % 5 or frame % 10 == 0}
            if frame % 20 == 7:  # the others have a frame while the session waits for its own
                eight.step(speaking)
            frames = {**speaking, session: PCM[0, frame]} if frame % 2 else {session: PCM[0, frame], **speaking}
            answers = eight.step(frames)
            assert answers.keys() == frames.keys()
            replies.append(answers[session])
            sizes.add(len(frames))
    assert sizes == {3, 4, 5, 6, 7, 8}
    assert heard(replies) == alone


@pytest.mark.parametrize("schedule", range(3))
def test_sessions_are_independent_in_any_schedule(
    uncached: Runtime, ways: list[tuple[dict[str, Any], Heard]], monkeypatch: pytest.MonkeyPatch, schedule: int
) -> None:
    """Sessions open (in chunks), step and close at random; each gives the replies it gives alone."""
    monkeypatch.setattr("pplex.runtime.priming.PRIMING_STEPS", 10)
    random = np.random.default_rng(schedule)
    openings: list[tuple[int, Generator[None, None, Session]]] = []
    said: dict[Session, tuple[int, list[Reply]]] = {}
    compared = 0
    with ExitStack() as stack:
        for _ in range(150):
            if len(openings) + len(said) < uncached.slots:
                way = int(random.integers(len(ways)))
                openings.append((way, uncached.begin(**ways[way][0])))
                next(openings[-1][1])
            for way, opening in [some for some in openings if random.random() < 0.5]:
                try:
                    next(opening)
                except StopIteration as end:
                    said[stack.enter_context(end.value)] = way, []
                    openings = [other for other in openings if other[1] is not opening]
            speaking = [session for session in said if random.random() < 0.8]
            random.shuffle(speaking)  # type: ignore[arg-type]
            frames = {session: PCM[said[session][0], len(said[session][1])] for session in speaking}
            for session, reply in uncached.step(frames).items():
                said[session][1].append(reply)
            for session, (way, replies) in list(said.items()):
                alone = ways[way][1]
                if len(replies) == len(alone.tokens) or random.random() < 0.01:
                    session.close()
                    del said[session]
                    compared += len(replies)
                    assert not replies or heard(replies) == alone.start(len(replies)), ways[way][0]
        for _, opening in openings:
            opening.close()
    assert compared > 150


@pytest.fixture(scope="module")
def ways(uncached: Runtime) -> list[tuple[dict[str, Any], Heard]]:
    """Ways to open a session, and its first 50 replies alone."""
    asked: list[dict[str, Any]] = [
        {"voice": "NATF0", "persona": LONG_PERSONA, "seed": 1},
        {"voice": None, "persona": PERSONA, "seed": 2, "sampling": GREEDY},
        {"voice": WAV, "persona": LONG_PERSONA, "seed": 1},
        {"voice": "VARF2", "persona": "", "seed": 4, "sampling": Sampling(2.0, 512, 2.0, 512)},
    ]
    found = []
    for i, options in enumerate(asked):
        with uncached.open(**options) as session:
            found.append((options, talk(session, PCM[i, :50])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "sampled"])
def test_batch_size_changes_no_token_but_for_near_ties(tiny_bundle: Bundle, eight: Runtime, sampling: Sampling) -> None:
    growing, logits = Runtime(tiny_bundle, slots=8, threads=1), small_runtime(tiny_bundle, logits=True)
    assert growing.batches == [1, 2, 4, 8]
    with logits.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
        alone = with_standings(session, CODES[0])
    with eight.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
        assert_same_up_to_a_tie(tiny_bundle, talk_codes(session, CODES[0]), alone)

    # The same conversation in every slot, begun later and ended earlier the higher the slot.
    conversations: list[tuple[Session, list[Tokens]]] = []
    said_by = dict[int, list[Tokens]]()
    for frame in range(FRAMES):
        if frame % 30 == 0 and frame < 240:
            conversations.append((growing.open("NATF0", PERSONA, seed=7, sampling=sampling), []))
        if frame > 240 and frame % 7 == 0 and len(conversations) > 1:
            conversations.pop()[0].close()
        answers = growing.step_codes({session: CODES[0, len(said)] for session, said in conversations})
        for session, said in conversations:
            said.append(answers[session])
            said_by[session.row] = said
    assert sorted(said_by) == [*range(8)]
    for said in said_by.values():
        assert_same_up_to_a_tie(tiny_bundle, np.stack(said), alone)
    assert len(conversations) == 1 and len(conversations[0][1]) == FRAMES


def test_a_used_slot_equals_a_new_one(tiny_bundle: Bundle) -> None:
    def fresh() -> Runtime:
        return small_runtime(tiny_bundle)

    used = fresh()
    with used.open(WAV, "Someone else entirely", seed=1) as other:
        talk(other, PCM[1, :150])
    with used.open("NATF0", PERSONA, seed=7) as session, fresh().open("NATF0", PERSONA, seed=7) as expected:
        assert talk(session, PCM[0, :60]) == talk(expected, PCM[0, :60])
        assert_same(state_of(used, 0), state_of(expected.runtime, 0))


def test_closing_clears_everything_the_session_wrote(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle)
    for voice in ("NATF0", None, WAV):
        for frames in (0, 1, 20):  # with 20 every ring is full
            with runtime.open(voice, LONG_PERSONA, seed=7) as session:
                for frame in PCM[0, :frames]:
                    session.step(frame)
            assert is_clear(runtime), (voice, frames)


def test_sessions_take_the_lowest_free_slot(eight: Runtime) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(eight.open(seed=0)) for _ in range(4)]
        assert [session.row for session in sessions] == [0, 1, 2, 3]
        sessions[2].close()
        sessions[0].close()
        assert [stack.enter_context(eight.open(seed=0)).row for _ in range(3)] == [0, 2, 4]


def test_a_step_without_sessions_gives_no_replies(one: Runtime) -> None:
    assert one.step({}) == {}
    assert one.step_codes({}) == {}


# Priming.


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
            assert ring[:, :80].any(axis=(0, 2)).all() and not ring[:, 80:].any(), name


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
    for row in (0, 1):  # the first one keeps its slot, so that the second one gets another
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


def test_prompts_are_kept_up_to_a_limit_of_bytes(tiny_bundle: Bundle) -> None:
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


def test_no_prompt_is_cached_without_room(uncached: Runtime, one: Runtime) -> None:
    with one.open("VARF2", PERSONA, seed=7) as session:
        expected = talk(session, PCM[0, :5])
    for _ in range(2):
        session, chunks = finish(uncached.begin("VARF2", PERSONA, seed=7))
        with session:
            assert chunks > 0
            np.testing.assert_array_equal(talk(session, PCM[0, :5]).tokens, expected.tokens)


def test_a_prompt_too_large_for_the_cache_drops_no_other(tiny_bundle: Bundle) -> None:
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


# Interleaving.


@pytest.mark.slow
def test_opening_others_between_the_frames_changes_nothing(uncached: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions are primed in turns while a third one speaks between their chunks."""
    monkeypatch.setattr("pplex.runtime.priming.PRIMING_STEPS", 4)
    asked: list[dict[str, Any]] = [
        {"voice": "NATF0", "persona": LONG_PERSONA, "seed": 1},
        {"voice": WAV, "persona": "You like to listen.", "seed": 2},
        {"voice": "NATM1", "persona": [5] * 40, "seed": 3, "sampling": GREEDY},
    ]
    third = uncached.open(**asked[0])
    replies = [third.step(frame) for frame in PCM[0, :15]]  # past the ring's end
    openings = {1: uncached.begin(**asked[1]), 2: uncached.begin(**asked[2])}
    sessions: dict[int, Session] = {}
    while openings:
        for i, opening in list(openings.items()):
            try:
                next(opening)
            except StopIteration as end:
                sessions[i] = end.value
                del openings[i]
            replies.append(third.step(PCM[0, len(replies)]))
    spoken = len(replies)
    assert spoken > 70
    together: dict[int, list[Reply]] = {1: [], 2: []}
    for frame in range(20):
        answers = uncached.step({sessions[1]: PCM[1, frame], third: PCM[0, spoken + frame], sessions[2]: PCM[2, frame]})
        replies.append(answers[third])
        for i, session in sessions.items():
            together[i].append(answers[session])
    for session in (third, *sessions.values()):
        session.close()

    for i, got in {0: replies, **together}.items():
        with uncached.open(**asked[i]) as session:
            assert session.row == 0
            assert heard(got) == talk(session, PCM[i, : len(got)]), asked[i]


@pytest.mark.parametrize("chunks", [1, 5, 12, 29, 33])
@pytest.mark.parametrize("voice", ["NATF0", RECORDING])
def test_an_opening_closed_early_frees_its_slot(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, voice: str, chunks: int
) -> None:
    """29 chunks are in the middle of encoding the recording, 33 in that of the prompt."""
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


def test_an_opening_that_was_never_started_takes_no_slot(one: Runtime) -> None:
    opening = one.begin("NATF0")
    with one.open("NATF0") as session:
        assert session.row == 0
    opening.close()


# Seeds and streaming.


def test_a_seed_gives_one_conversation_and_another_seed_another(one: Runtime) -> None:
    def conversation(seed: int | None) -> Heard:
        with one.open("NATF0", PERSONA, seed=seed) as session:
            return talk(session, PCM[0, :30])

    first = conversation(7)
    assert conversation(7) == first
    others = [conversation(seed) for seed in (0, 8, (1 << 64) - 1)]
    for i, other in enumerate(others):
        for another in (first, *others[:i]):
            assert (other.tokens[:, 1:9] != another.tokens[:, 1:9]).any()
            assert (other.tokens[:, 0] != another.tokens[:, 0]).any()


def test_without_a_seed_conversations_differ_and_can_be_repeated(one: Runtime) -> None:
    with one.open("NATF0", PERSONA) as session:
        seed, first = session.seed, talk(session, PCM[0, :20])
    with one.open("NATF0", PERSONA) as session:
        assert session.seed != seed
        assert (talk(session, PCM[0, :20]).tokens != first.tokens).any()
    with one.open("NATF0", PERSONA, seed=seed) as session:
        assert talk(session, PCM[0, :20]) == first


def test_greedy_ignores_the_seed_and_what_the_slot_drew_before(one: Runtime) -> None:
    def conversation(seed: int) -> Heard:
        with one.open("NATF0", PERSONA, seed=seed, sampling=GREEDY) as session:
            return talk(session, PCM[0, :30])

    first = conversation(7)
    with one.open("NATF0", PERSONA, seed=3) as sampled:
        talk(sampled, PCM[0, :10])
    assert conversation(8) == first


def test_text_and_audio_have_separate_sampling_settings(one: Runtime) -> None:
    def first_frames(seed: int, sampling: Sampling) -> Tokens:
        """Before the first sampled token can have changed anything else: text of one step, audio of the same step."""
        with one.open("NATF0", PERSONA, seed=seed, sampling=sampling) as session:
            return talk_codes(session, CODES[0, :2])

    greedy_text, greedy_audio = Sampling(text_top_k=1), Sampling(audio_top_k=1)
    texts = [{int(first_frames(seed, s)[1, 0]) for seed in range(12)} for s in (greedy_text, Sampling())]
    assert [len(found) > 1 for found in texts] == [False, True]
    by_text: dict[int, set[bytes]] = {}
    for seed in range(12):
        frame = first_frames(seed, greedy_audio)[1]
        by_text.setdefault(int(frame[0]), set()).add(frame[1:2].tobytes())
    assert len(by_text) > 1 and all(len(audio) == 1 for audio in by_text.values())


def test_recorded_noise_replaces_the_seed(one: Runtime) -> None:
    with one.open("NATF0", PERSONA, seed=7) as session:
        expected = talk_codes(session, CODES[0, :30])
    with one.open("NATF0", PERSONA, seed=1) as session:
        pairs = zip(CODES[0], recorded(7, 15), strict=False)
        np.testing.assert_array_equal([session.step_codes(*pair) for pair in pairs], expected[:15])
        assert (talk_codes(session, CODES[0, 15:30]) != expected[15:]).any()


def recorded(seed: int, frames: int) -> list[FrameNoise]:
    """The draws of a session with this seed."""
    config = ModelConfig.from_checkpoint(TINY / "checkpoint" / "config.json")
    tables = np.empty((1, config.noise_entries), np.float32)
    offset, stride = np.zeros((2, 1, 17), np.int64)
    noise, drawn = Noise(tables, offset, stride, lambda row, start, count: None), []
    noise.open(0, seed)
    text, audio = np.arange(config.text_card), np.tile(np.arange(config.audio_card), (8, 1))
    for _ in range(frames):
        noise.draw(np.array([0]))
        keys = [*zip(offset[0].tolist(), stride[0].tolist(), strict=True)]
        of_audio = np.stack([noise_of(tables[0], *key, audio[0]) for key in keys[1:9]])
        drawn.append(FrameNoise(noise_of(tables[0], *keys[0], text), of_audio, text, audio))
    return drawn


def test_recorded_noise_shifts_no_other_frame(one: Runtime) -> None:
    """A session's own draws, recorded for some frames, change nothing in the other frames."""
    with one.open("NATF0", PERSONA, seed=7) as session:
        expected = talk_codes(session, CODES[0, :30])
    with one.open("NATF0", PERSONA, seed=7) as session:
        given = [drawn if frame in (0, 5, 6, 20) else None for frame, drawn in enumerate(recorded(7, 30))]
        pairs = zip(CODES[0], given, strict=False)
        np.testing.assert_array_equal([session.step_codes(*pair) for pair in pairs], expected)


def test_greedy_draws_nothing(three: Runtime) -> None:
    stages = three.stages
    with three.open(seed=1) as sampled, three.open(seed=2, sampling=GREEDY) as greedy:
        before = stages.noise.copy(), stages.noise_offset.copy(), stages.noise_stride.copy()
        for frame in range(3):
            three.step({greedy: PCM[0, frame], sampled: PCM[1, frame]})
        for rows, earlier in zip((stages.noise, stages.noise_offset, stages.noise_stride), before, strict=True):
            np.testing.assert_array_equal(rows[greedy.row], earlier[greedy.row])
        assert (stages.noise_offset[sampled.row] != before[1][sampled.row]).any()


def test_a_step_allocates_its_replies_and_nothing_as_large(tiny_bundle: Bundle) -> None:
    """Less than a byte per sample of the frames, so frames, noise and logits are not copied."""
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
    pcm = decode(Stages(tiny_bundle, slots=1), alone.tokens[:, 1:9])
    np.testing.assert_allclose(alone.pcm.reshape(-1), pcm, rtol=0, atol=1e-6)
    assert np.abs(pcm).max() > 0.01


def test_user_codes_come_out_one_frame_later_unchanged(tiny_bundle: Bundle, alone: Heard) -> None:
    stages, codes = Stages(tiny_bundle, slots=8), []
    stages.active[0] = True
    for stages.pcm_in[0, 0] in PCM[0]:
        stages.run("mimi_encode", 8)
        codes.append(stages.user_codes[0].copy())
    np.testing.assert_array_equal(alone.tokens[1:, 9:], codes[:-1])
    np.testing.assert_array_equal(alone.tokens[0, 9:], SINE_CODES)


def test_step_codes_gives_the_tokens_of_step(eight: Runtime, alone: Heard) -> None:
    with eight.open("NATF0", PERSONA, seed=7) as session:
        np.testing.assert_array_equal(talk_codes(session, alone.tokens[1:121, 9:]), alone.tokens[:120])


def test_text_pieces_are_those_of_the_text_tokens(one: Runtime, alone: Heard) -> None:
    assert "".join(alone.text)
    for token, text in zip(alone.tokens[:, 0].tolist(), alone.text, strict=True):
        if token < 4:
            assert text == ""
        elif one.tokenizer.byte(token) is None:
            assert text.endswith(one.tokenizer.piece(token))


# Refusals.


@contextmanager
def refused(runtime: Runtime, error: type[PplexError], message: str) -> Iterator[None]:
    """The block must fail with this error, and leave the runtime's only slot free and clear."""
    with pytest.raises(error, match=message):
        yield
    assert is_clear(runtime)
    with runtime.open("NATF0", PERSONA, seed=7) as session:
        assert session.row == 0


@pytest.fixture(scope="module")
def only(tiny_bundle: Bundle) -> Runtime:
    """One slot, used and cleared."""
    runtime = small_runtime(tiny_bundle)
    with runtime.open(seed=0) as session:
        session.step(PCM[0, 0])
    return runtime


def test_no_slot_is_left(one: Runtime, eight: Runtime) -> None:
    with one.open(seed=0), pytest.raises(SlotError, match=r"All 1 slots are taken\. Close a session"):
        one.open(seed=0)
    with ExitStack() as stack:
        sessions = [stack.enter_context(eight.open(seed=0)) for _ in range(8)]
        with pytest.raises(SlotError, match=r"All 8 slots are taken"):
            eight.open(seed=0)
        sessions[5].close()
        assert stack.enter_context(eight.open(seed=0)).row == 5


def test_a_closed_session_cannot_be_stepped_and_closes_again(one: Runtime) -> None:
    session = one.open(seed=0)
    session.close()
    session.close()
    with one.open("NATF0", PERSONA, seed=7) as successor:
        session.close()
        for step in (lambda: session.step(PCM[0, 0]), lambda: session.step_codes(CODES[0, 0])):
            with pytest.raises(SlotError, match="closed"):
                step()
        got = talk(successor, PCM[0, :5])
    with one.open("NATF0", PERSONA, seed=7) as undisturbed:
        assert talk(undisturbed, PCM[0, :5]) == got


def test_a_session_of_another_runtime_is_refused(one: Runtime, eight: Runtime) -> None:
    with one.open(seed=0) as ours, eight.open(seed=0) as theirs:
        before = state_of(one, 0), state_of(eight, 0)
        for frames in ({theirs: PCM[0, 0]}, {ours: PCM[0, 0], theirs: PCM[0, 0]}):
            with pytest.raises(SlotError, match="another runtime"):
                one.step(frames)
        with pytest.raises(SlotError, match="another runtime"):
            one.step_codes({theirs: CODES[0, 0]})
        assert_same(state_of(one, 0), before[0])
        assert_same(state_of(eight, 0), before[1])


def test_a_session_of_another_runtime_is_not_closed(tiny_bundle: Bundle) -> None:
    runtimes = [small_runtime(tiny_bundle) for _ in range(2)]
    ours, theirs = (runtime.open(seed=0) for runtime in runtimes)
    before = [state_of(runtime, 0) for runtime in runtimes]
    with pytest.raises(SlotError, match="another runtime"):
        runtimes[0].close(theirs)
    assert ours.is_open and theirs.is_open
    for runtime, state in zip(runtimes, before, strict=True):
        assert_same(state_of(runtime, 0), state)


def not_finite(value: float) -> Pcm:
    frame = PCM[0, 0].copy()
    frame[1919] = value
    return frame


BAD_FRAMES = {
    "nan": (not_finite(np.nan), "NaN or infinite"),
    "infinite": (not_finite(-np.inf), "NaN or infinite"),
    "16-bit integers as floats": (PCM[0, 0] * 32768, r"never scaled: divide them by 32,768"),
    "24-bit integers as float64": (PCM[0, 0].astype(np.float64) * 2**23, r"never scaled: divide them by 8,388,608"),
    "too short": (np.zeros(1919, np.float32), r"must be \[1920\] samples.* \[1919\]"),
    "two channels": (np.zeros((1920, 2), np.float32), r"\[1920, 2\]"),
    "empty": (np.zeros(0, np.float32), r"\[0\]"),
    "a batch": (np.zeros((1, 1920), np.float32), r"\[1, 1920\]"),
    "integers": (np.zeros(1920, np.int16), "not int16"),
    "a list": ([0.0] * 1920, "not list"),
}


def two_sessions(runtime: Runtime) -> tuple[Session, Session]:
    first, second = (runtime.open("NATF0", PERSONA, seed=seed) for seed in (7, 8))
    both_step(first, second, range(10))
    return first, second


def both_step(first: Session, second: Session, frames: range) -> list[Heard]:
    replies = [first.runtime.step({first: PCM[0, frame], second: PCM[1, frame]}) for frame in frames]
    return [heard(reply[session] for reply in replies) for session in (first, second)]


@pytest.fixture(scope="module")
def undisturbed(three: Runtime) -> list[Heard]:
    """Replies of two sessions in their second 10 frames."""
    first, second = two_sessions(three)
    with first, second:
        return both_step(first, second, range(10, 20))


@contextmanager
def nothing_happens(runtime: Runtime, undisturbed: list[Heard]) -> Iterator[tuple[Session, Session]]:
    """Two sessions after 10 frames; the block must leave their states and their next 10 replies as they are."""
    first, second = two_sessions(runtime)
    with first, second:
        before = [state_of(runtime, session.row) for session in (first, second)]
        yield first, second
        for session, state in zip((first, second), before, strict=True):
            assert_same(state_of(runtime, session.row), state)
        assert both_step(first, second, range(10, 20)) == undisturbed


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_one_bad_frame_leaves_all_sessions_untouched(three: Runtime, undisturbed: list[Heard], name: str) -> None:
    frame, message = BAD_FRAMES[name]
    with nothing_happens(three, undisturbed) as (good, bad):
        for frames in ({good: PCM[0, 10], bad: frame}, {bad: frame, good: PCM[0, 10]}):
            with pytest.raises(AudioError, match=message):
                three.step(frames)  # type: ignore[arg-type]


def test_after_a_refused_frame_the_other_sessions_continue(three: Runtime) -> None:
    with three.open("NATF0", PERSONA, seed=7) as good:
        expected = talk(good, PCM[0, :5])
    for name, (frame, _) in BAD_FRAMES.items():
        with three.open("NATF0", PERSONA, seed=7) as good, three.open(seed=8) as bad, three.open(seed=9) as worse:
            with pytest.raises(AudioError):
                three.step({bad: not_finite(np.nan), good: PCM[1, 0], worse: frame})  # type: ignore[dict-item]
            assert talk(good, PCM[0, :5]) == expected, name


def test_a_closed_session_among_others_leaves_them_untouched(three: Runtime, undisturbed: list[Heard]) -> None:
    with nothing_happens(three, undisturbed) as (first, second):
        closed = three.open(seed=0)
        closed.close()
        with pytest.raises(SlotError, match="closed"):
            three.step({first: PCM[0, 10], closed: PCM[2, 10], second: PCM[1, 10]})


BAD_CODES = {
    "negative": np.array([0, 1, 2, 3, 4, 5, 6, -1]),
    "too large": np.array([2048, 1, 2, 3, 4, 5, 6, 7]),
    "seven": np.arange(7),
    "nine": np.arange(9),
    "none": np.zeros(0, np.int64),
    "two frames": np.zeros((2, 8), np.int64),
    "one number": np.array(5),
    "fractions": np.full(8, 0.5),
    "not numbers": np.full(8, np.nan),
}


@pytest.mark.parametrize("name", BAD_CODES)
def test_bad_codes_leave_all_sessions_untouched(three: Runtime, undisturbed: list[Heard], name: str) -> None:
    with nothing_happens(three, undisturbed) as (good, bad):
        for frames in (
            {bad: BAD_CODES[name]},
            {good: CODES[0, 0], bad: BAD_CODES[name]},
            {bad: BAD_CODES[name], good: CODES[0, 0]},
        ):
            with pytest.raises(AudioError, match="8 whole codes from 0 to 2047"):
                three.step_codes(frames)


@pytest.mark.parametrize("voice", ["NATF9", "", "natf0", "../NATF0", "voice.mp3"])
def test_unknown_voice_is_refused_with_the_known_ones(only: Runtime, voice: str) -> None:
    with refused(only, PromptError, r"Unknown voice .* NATF0, NATM1, VARF2; .*\.wav, \.flac, \.ogg"):
        only.open(voice)


def test_unusable_recordings_of_a_voice(only: Runtime, tmp_path: Path) -> None:
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


def test_the_same_recording_under_another_name_is_the_same_voice(one: Runtime, tmp_path: Path) -> None:
    os.symlink(WAV, tmp_path / "Copy.WAV")
    with one.open(WAV, [9, 9, 9], seed=1) as session:
        expected = talk(session, PCM[0, :5])
    session, chunks = finish(one.begin(tmp_path / "Copy.WAV", [9, 9, 9], seed=1))
    with session:
        assert chunks == 0
        assert talk(session, PCM[0, :5]) == expected


@pytest.mark.parametrize("voice, others", [("NATF0", 29 + 12), (None, 11), pytest.param(WAV, 29 + 12, id="recording")])
def test_the_longest_persona_works_and_one_token_more_does_not(only: Runtime, voice: str | None, others: int) -> None:
    longest = ROOM - others
    message = (
        rf"takes {ROOM + 1} steps \(persona {longest + 1}, voice and silences {others}\) but the model remembers"
        rf" {ROOM}\. Shorten the persona to {longest} tokens"
    )
    with refused(only, PromptError, message):
        only.open(voice, [5] * (longest + 1))
    with only.open(voice, [5] * longest, seed=0) as session:
        assert only.ring.step[0] == 1 + ROOM
        assert talk(session, PCM[0, :5]).tokens.shape == (5, 17)


def test_a_persona_too_long_as_text_is_refused_with_the_numbers(only: Runtime) -> None:
    tokens = len(only.tokenizer.encode_persona("word " * 100))
    with refused(only, PromptError, rf"takes {tokens + 11} steps \(persona {tokens}, .* to {ROOM - 11} tokens"):
        only.open(None, "word " * 100)


@pytest.mark.parametrize("token", [-1, 401, 1 << 40])
def test_a_persona_of_other_tokens_is_refused(only: Runtime, token: int) -> None:
    with refused(only, PromptError, rf"token {token}; this model's text tokens are 0 to 400\."):
        only.open("NATF0", [5, token])


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5])
def test_seed_out_of_range_is_refused(only: Runtime, seed: float) -> None:
    with refused(
        only, PromptError, rf"The seed is {re.escape(str(seed))}, but must be a whole number, 0 to 2\^64 - 1\."
    ):
        only.open(seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, (1 << 64) - 1])
def test_first_and_last_seed_can_be_used(only: Runtime, seed: int) -> None:
    with only.open(seed=seed) as session:
        assert talk(session, PCM[0, :2]).tokens.shape == (2, 17)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-7, 1e7, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["text_temperature", "audio_temperature"])
def test_temperature_out_of_range_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(PromptError, match=rf"^{name} is {temperature}, but must be 1e-06 to 1e\+06 "):
        Sampling(**{name: temperature})


@pytest.mark.parametrize("top_k", [0, -5, 513, 2.5])
@pytest.mark.parametrize("name", ["text_top_k", "audio_top_k"])
def test_top_k_out_of_range_is_refused(name: str, top_k: int) -> None:
    with pytest.raises(PromptError, match=rf"^{name} is {top_k}, but must be a whole number, 1 to 512\.$"):
        Sampling(**{name: top_k})  # type: ignore[arg-type]


def test_all_sampling_mistakes_are_named_at_once() -> None:
    with pytest.raises(PromptError) as refusal:
        Sampling(0, 0, 0, 0)
    for name in ("text_temperature", "text_top_k", "audio_temperature", "audio_top_k"):
        assert f"{name} is 0" in str(refusal.value)


@pytest.mark.parametrize(
    "sampling", [Sampling(1e-6, 1, 1e-6, 1), Sampling(1e-6, 512, 1e-6, 512), Sampling(1e6, 512, 1e6, 512)]
)
def test_extreme_settings_can_be_used(one: Runtime, sampling: Sampling) -> None:
    with one.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
        replies = talk(session, PCM[0, :20])
    assert np.isfinite(replies.pcm).all()
    assert ((replies.tokens >= 0) & (replies.tokens <= [400] + [2048] * 16)).all()


def test_a_temperature_near_zero_is_greedy(one: Runtime) -> None:
    conversations = []
    for sampling in (GREEDY, Sampling(1e-6, 25, 1e-6, 250)):
        with one.open("NATF0", PERSONA, seed=7, sampling=sampling) as session:
            conversations.append(talk(session, PCM[0, :20]))
    assert conversations[0] == conversations[1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slots": 0}, "0 slots in batches of any size: a runtime needs at least 1"),
        ({"slots": -3}, "-3 slots"),
        ({"slots": 8, "batches": [1, 4]}, "8 slots need a batch size of at least 8; the largest given is 4"),
    ],
)
def test_slots_and_batches_that_do_not_fit_are_refused(
    tiny_bundle: Bundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SlotError, match=message):
        Runtime(tiny_bundle, **options)


def test_load_opens_a_folder_with_options(tiny_bundle: Bundle) -> None:
    runtime = Runtime.load(str(tiny_bundle.folder), slots=3, threads=1)
    assert (runtime.slots, runtime.batches) == (3, [1, 2, 3])
    with runtime.open("NATF0", PERSONA, seed=7) as session:
        assert session.step(PCM[0, 0]).pcm.shape == (1920,)


def test_a_loaded_runtime_does_not_need_the_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    runtime = Runtime.load(folder, slots=1, threads=1)
    shutil.rmtree(folder)
    with runtime.open("NATM1", PERSONA, seed=1) as session:
        assert talk(session, PCM[0, :2]).tokens.shape == (2, 17)


def test_refused_noise_leaves_all_sessions_untouched(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle, 2)
    first, second = runtime.open("NATF0", PERSONA, seed=1), runtime.open("NATM1", PERSONA, seed=2)
    before = [runtime.ring.save(session.row) for session in (first, second)]
    draws, ids = np.ones((8, 9), np.float32), np.full((8, 9), 5000)
    wide = FrameNoise(draws[0], draws, ids[0], ids)
    with pytest.raises(NoiseError):
        runtime.step_codes({first: CODES[0, 0], second: CODES[0, 1]}, {second: wide})
    assert (first.frame, second.frame) == (0, 0)
    for session, (tokens, provided, step) in zip((first, second), before, strict=True):
        saved = runtime.ring.save(session.row)
        assert (saved[0] == tokens).all() and (saved[1] == provided).all() and saved[2] == step
