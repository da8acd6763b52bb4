"""Sampling noise: what it depends on, the statistics of its draws, and recorded draws."""

from dataclasses import replace

import numpy as np
import pytest
from folders import TINY
from torch import from_numpy, tensor

from pplex.export.layers import sample
from pplex.runtime.arrays import Tokens
from pplex.runtime.config import CODEBOOKS, MIN_NOISE
from pplex.runtime.config_file import read_config
from pplex.runtime.errors import NoiseError
from pplex.runtime.noise import FRAMES, PIECES, FrameNoise, Noise, Noise32, noise_of

CONFIG = read_config(TINY / "checkpoint" / "config.json").config
STREAMS = CONFIG.num_streams


class Slots:
    """Noise of some slots, and the arrays that engines would read it from."""

    def __init__(self, slots: int = 1):
        self.tables = np.full((slots, MIN_NOISE), np.nan, np.float32)
        self.offset, self.stride = np.zeros((2, slots, STREAMS), np.int64)
        self.uploaded = np.full((slots, MIN_NOISE), np.nan, np.float32)  # as a GPU would
        self.noise = Noise(self.tables, self.offset, self.stride, self.upload)

    def upload(self, row: int, start: int, count: int) -> None:
        self.uploaded[row, start : start + count] = self.tables[row, start : start + count]

    def draw(self, *rows: int) -> None:
        self.noise.draw(np.array(rows or [0]))

    def of(self, stream: int, tokens: Tokens, row: int = 0) -> Noise32:
        """Noise of tokens [n] of a stream in this frame."""
        return noise_of(self.tables[row], int(self.offset[row, stream]), int(self.stride[row, stream]), tokens)

    def frame(self, row: int = 0) -> bytes:
        """Noise of tokens 0, 7, 14, ... of every stream in this frame."""
        return np.stack([self.of(stream, np.arange(0, 2048, 7), row) for stream in range(STREAMS)]).tobytes()


def opened(seed: int) -> Slots:
    slots = Slots()
    slots.noise.open(0, seed)
    return slots


def frames(seed: int, count: int) -> list[bytes]:
    slots, found = opened(seed), []
    for _ in range(count):
        slots.draw()
        found.append(slots.frame())
    return found


@pytest.mark.parametrize("seed", [0, 42, (1 << 63) - 1, (1 << 64) - 1])
def test_a_seed_gives_the_same_frames_in_any_slot_and_company(seed: int) -> None:
    count = 2 * FRAMES + 5
    expected = frames(seed, count)
    slots, found = Slots(3), []
    for row, other in enumerate((seed, 1, seed)):
        slots.noise.open(row, other)
        slots.draw(*[row] * (row < 2))
    slots.noise.open(2, seed)
    for frame in range(count):
        slots.draw(*[row for row in range(2) if frame % 3 > row])
        slots.draw(2)
        found.append(slots.frame(2))
    assert found == expected


def test_a_used_slot_draws_as_a_new_one() -> None:
    slots, expected = opened(3), frames(4, 70)
    for _ in range(50):
        slots.draw()
    slots.noise.close(0)
    slots.noise.open(0, 4)
    for frame in expected:
        slots.draw()
        assert slots.frame() == frame


def test_a_seed_gives_known_numbers() -> None:
    """The same in every version of numpy and on every processor, except for the last digit of a float32."""
    slots = opened(42)
    slots.draw()
    expected = [0.4268937, 0.3621742, 1.564903, 3.187536, 0.2259537, 0.7636008]
    np.testing.assert_allclose(slots.of(0, np.arange(6)), expected, rtol=1e-6)
    assert (slots.offset[0, :3].tolist(), slots.stride[0, :3].tolist()) == ([59457, 8838, 61910], [50091, 11799, 27833])
    for _ in range(100):
        slots.draw()
    expected = [3.268216, 0.8982298, 0.08473849, 1.917425, 0.6405019, 0.06270963]
    np.testing.assert_allclose(slots.of(8, np.arange(6)), expected, rtol=1e-6)


def test_tokens_of_a_draw_have_distinct_entries() -> None:
    slots = opened(5)
    entries = np.arange(MIN_NOISE, dtype=np.float32)[None]
    for _ in range(20):
        slots.draw()
        slots.tables = entries
        for stream in range(STREAMS):
            assert len(np.unique(slots.of(stream, np.arange(MIN_NOISE)))) == MIN_NOISE


def test_frames_seeds_and_streams_differ() -> None:
    seeds = 0, 1, 2, 1 << 32, 1 << 63
    seen = [frame for seed in seeds for frame in frames(seed, 70)]
    assert len(set(seen)) == len(seen)
    slots = opened(0)
    slots.draw()
    assert len({slots.of(stream, np.arange(100)).tobytes() for stream in range(STREAMS)}) == STREAMS


def test_engines_and_host_use_the_same_tables() -> None:
    slots = opened(6)
    np.testing.assert_array_equal(slots.uploaded, slots.tables)
    before = slots.tables.copy()
    for _ in range(PIECES * FRAMES):
        slots.draw()
        np.testing.assert_array_equal(slots.uploaded, slots.tables)
    assert (before != slots.tables).all()  # every entry has been renewed


def test_sessions_that_begin_together_renew_their_tables_at_different_times() -> None:
    slots, together = Slots(16), []
    for row in range(16):
        slots.noise.open(row, row)
    for _ in range(2 * FRAMES):
        before = slots.tables[:, ::64].copy()
        slots.draw(*range(16))
        together.append(int((slots.tables[:, ::64] != before).any(1).sum()))
    assert max(together) == 1 and sum(together) >= 16


def test_a_greedy_slot_keeps_its_table() -> None:
    slots = Slots()
    slots.tables[...] = 1
    for _ in range(2 * FRAMES):
        slots.draw()
    assert (slots.tables == 1).all() and not slots.offset.any() and not slots.stride.any()


# Statistics. By chance a bound is exceeded in one of a thousand samples or fewer; seeds are fixed.


def test_draws_are_exponential() -> None:
    x = np.sort(opened(1).tables[0].astype(np.float64))
    n = len(x)
    assert x[0] > 0 and abs(x.mean() - 1) < 4 * np.sqrt(1 / n) and abs(x.var() - 1) < 4 * np.sqrt(8 / n)
    distance = np.abs(np.arange(1, n + 1) / n - (1 - np.exp(-x))).max()
    assert distance < 2 / np.sqrt(n)  # Kolmogorov: once in 1500 samples by chance


def winners(logits: np.ndarray, temperature: float, top_k: int, count: int, seed: int = 0) -> Tokens:
    """Ranks of the tokens that a session draws from the same logits in every frame, [F, 1 + K]."""
    ranked = np.argsort(-logits)[:top_k]
    p = np.exp((logits[ranked] - logits[ranked[0]]) / temperature).astype(np.float32)
    slots, found = opened(seed), np.empty((count, STREAMS), np.int64)
    for frame in range(count):
        slots.draw()
        entries = (slots.offset[0][:, None] + slots.stride[0][:, None] * ranked) % MIN_NOISE
        found[frame] = (p / slots.tables[0][entries]).argmax(1)
    return found


SHAPES = {
    "flat": (np.zeros(2048), 0.8, 250),
    "as wide as a model's": (np.random.default_rng(0).normal(0, 2, 2048), 0.8, 250),
    "text": (np.random.default_rng(1).normal(0, 1, 32000), 0.7, 25),
}
COUNT = 1_000_000 // STREAMS


@pytest.fixture(scope="module", params=SHAPES)
def drawn(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """A million draws, and the probabilities of their ranks."""
    logits, temperature, top_k = SHAPES[request.param]
    p = np.exp((np.sort(logits)[::-1][:top_k] - logits.max()) / temperature)
    return winners(logits, temperature, top_k, COUNT), p / p.sum()


@pytest.mark.slow
def test_a_million_draws_follow_the_top_k_softmax(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    ranks, p = drawn
    expected = p * ranks.size
    often = expected > 10
    counts = np.bincount(ranks.ravel(), minlength=len(p))
    freedom = often.sum() - 1
    chi_square = ((counts - expected) ** 2 / expected)[often].sum() / freedom
    assert abs(chi_square - 1) < 3.3 * np.sqrt(2 / freedom)
    rare = expected[~often].sum()
    assert abs(counts[~often].sum() - rare) <= 3.3 * np.sqrt(rare + 1)


@pytest.mark.slow
def test_draws_do_not_predict_the_next_frame_or_codebook(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    x = drawn[0] - drawn[0].mean()
    pairs = {"frame": (x[1:], x[:-1]), "block": (x[FRAMES:], x[:-FRAMES]), "codebook": (x[:, 1:], x[:, :-1])}
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean() / x.var()) < 3.3 / np.sqrt(one.size), name
    same = (drawn[0][1:] == drawn[0][:-1]).mean()
    chance = float((drawn[1] ** 2).sum())
    assert abs(same - chance) < 3.3 * np.sqrt(chance / x.size)


@pytest.mark.slow
def test_sessions_are_independent() -> None:
    logits, temperature, top_k = SHAPES["flat"]
    one, other = (winners(logits, temperature, top_k, 20_000, seed) - (top_k - 1) / 2 for seed in (7, 8))
    assert abs((one * other).mean() / (one.std() * other.std())) < 3.3 / np.sqrt(one.size)


# Noise belongs to the token.


def test_reordered_candidates_keep_their_noise() -> None:
    """The drawn token does not depend on the ranks, except in a near tie."""
    slots, tokens = opened(2), np.arange(300)
    logits = np.random.default_rng(0).normal(0, 1, 300).astype(np.float32)
    logits[0], logits[1] = 2, np.nextafter(np.float32(2), np.float32(3))
    swapped = logits.copy()
    swapped[[0, 1]] = logits[[1, 0]]
    drawn = []
    for _ in range(200):
        slots.draw()
        keys = (tensor([[int(key[0, 3])]]) for key in (slots.offset, slots.stride))
        given = (from_numpy(slots.tables), *keys), tensor([0.8]), tensor([250])
        drawn.append([int(sample(from_numpy(x[None]), *given)) for x in (logits, swapped)])
        race = np.where(logits >= np.sort(logits)[-250], np.exp(logits / 0.8) / slots.of(3, tokens), 0)
        assert drawn[-1] == [int(race.argmax())] * 2
    assert len({token for token, _ in drawn}) > 50 and {0, 1} & {token for token, _ in drawn}


# Recorded draws.


def recorded(text: int, steps: int, audio: int) -> FrameNoise:
    random = np.random.default_rng(0)
    ids = np.stack([random.permutation(CONFIG.audio_card)[:audio] for _ in range(steps)])
    return FrameNoise(
        random.exponential(size=text).astype(np.float32),
        random.exponential(size=(steps, audio)).astype(np.float32),
        random.permutation(CONFIG.text_card)[:text],
        ids.astype(np.int32),
    )


@pytest.mark.parametrize("steps", [CODEBOOKS, 2 * CODEBOOKS])
@pytest.mark.parametrize("text, audio", [(25, 250), (1, 1), (40, 2048)])
def test_recorded_draws_replace_the_noise_for_one_frame(steps: int, text: int, audio: int) -> None:
    given, slots = recorded(text, steps, audio), opened(9)
    slots.draw()
    own = slots.frame()
    slots.noise.replay({0: given}, CONFIG)
    np.testing.assert_array_equal(slots.of(0, given.text_ids), given.text)
    for step in range(CODEBOOKS):
        others = np.setdiff1d(np.arange(CONFIG.audio_card), given.audio_ids[step])
        np.testing.assert_array_equal(slots.of(1 + step, given.audio_ids[step]), given.audio[step])
        assert (slots.of(1 + step, others) == 1).all()
    np.testing.assert_array_equal(slots.uploaded, slots.tables)
    slots.noise.end_replay()
    np.testing.assert_array_equal(slots.uploaded, slots.tables)
    expected = frames(9, 2)
    assert own == expected[0]
    slots.draw()
    assert slots.frame() == expected[1]


def test_every_token_of_a_frame_has_an_entry() -> None:
    for config in (CONFIG, replace(CONFIG, text_card=48_000), replace(CONFIG, text_card=200_000)):
        size = config.noise_entries
        assert size >= config.text_card + 16 * config.audio_card and size & (size - 1) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"audio": np.ones((7, 10), np.float32)},
        {"text": np.ones((1, 10), np.float32)},
        {"audio": np.ones(80, np.float32)},
        {"text": np.zeros(10, np.float32)},
        {"audio": np.full((8, 10), np.nan, np.float32)},
        {"text": np.ones(9, np.float32)},
        {"text_ids": np.arange(10.0)},
        {"text_ids": np.arange(10) - 1},
        {"text_ids": np.arange(10) + CONFIG.text_card - 9},
        {"audio_ids": np.full((8, 10), CONFIG.audio_card)},
        {"audio_ids": np.zeros((8, 9), int)},
    ],
)
def test_unusable_recorded_noise_is_refused(change: dict[str, np.ndarray]) -> None:
    recorded(10, 8, 10).check(CONFIG)
    with pytest.raises(NoiseError):
        replace(recorded(10, 8, 10), **change).check(CONFIG)
