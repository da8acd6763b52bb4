"""The corpus of the trained small model: tokens stand where the runtime puts them."""

import numpy as np
import torch
from trained_codec import Codec
from trained_codes import Numbers
from trained_corpus import shifted
from trained_dialogues import aligned
from trained_sizes import CONFIG

from pplex.export import layers, mimi
from pplex.runtime.config import CODEBOOKS, SILENCE_CODES, SINE_CODES
from pplex.runtime.delays import DelayRing

PADDING = CONFIG.text_padding


def test_columns_are_those_of_the_token_ring() -> None:
    frames = np.random.default_rng(0).integers(0, 1000, (9, CONFIG.num_streams))
    ring = DelayRing(1, CONFIG.delays, CONFIG.initial_tokens)
    read = np.stack([ring.force(0, frame) for frame in frames])
    assert np.array_equal(shifted(CONFIG, frames)[:-1], read)


def numbers() -> Numbers:
    silence, tone = np.arange(8), np.arange(8) % 2  # one entry for both in codebooks 0 and 1
    usage = np.tile(np.arange(16, 0, -1), (CODEBOOKS, 1))
    return Numbers.chosen(silence, tone, usage, CONFIG.audio_card)


def test_silence_and_tone_have_the_released_codes() -> None:
    codes = numbers().codes
    assert [int(codes[k, k]) for k in range(CODEBOOKS)] == [*SILENCE_CODES]
    assert all(SINE_CODES[k] in codes[k] and len(set(codes[k])) == 16 for k in range(CODEBOOKS))


def test_compact_tokens_expand_to_the_same_codes() -> None:
    found = numbers()
    columns = np.full((20, CONFIG.num_streams), -1)
    columns[:16, 1:] = found.codes[np.arange(16) % CODEBOOKS].T
    columns[16, 1:] = CONFIG.audio_card
    assert np.array_equal(found.expanded(found.compacted(columns)), columns)


def test_a_word_starts_in_its_frame_after_a_frame_that_ends_the_padding() -> None:
    text = aligned([(0.41, "two"), (0.42, "words"), (0.99, "late")], 14, lambda word: [len(word), 9], PADDING)
    expected = [PADDING] * 14
    expected[4:9] = [0, 3, 9, 5, 9]
    expected[11:14] = [0, 4, 9]
    assert text.tolist() == expected


def test_a_word_that_does_not_fit_is_left_out() -> None:
    assert aligned([(0.3, "cut")], 4, lambda word: [5, 6], PADDING).tolist() == [PADDING] * 4


def test_training_a_codec_leaves_the_exported_function_as_it_is() -> None:
    pcm = torch.randn(1, 2, CONFIG.frame_size)
    sound, _, codes = Codec(CONFIG)(pcm)
    assert (sound.shape, codes.shape) == (pcm.shape, (1, 2, CODEBOOKS))
    assert mimi.elu is layers.elu
