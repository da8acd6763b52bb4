"""Checks that an engine draws its tokens correctly from its own logits, the noise and the settings.

The drift section compares token distributions with all tokens forced. Drawing a token is the same arithmetic in every
precision. So it is checked exactly, also in precisions whose conversations differ from the reference's.
"""

from itertools import cycle, islice

import numpy as np

from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.config import END_OF_PADDING, MAX_CANDIDATES
from pplex.runtime.noise import Noise, noise_of
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.stages import Stages
from pplex.validate.report.schema import Measure, Tolerance

STEPS = 48
SETTINGS = (Sampling(), GREEDY, Sampling(1.3, 5, 1.3, 7), Sampling(0.4, 512, 0.4, 512))
FORCED, FORCED_EVERY = 3, 5  # the forced token; each step forces one stream in five, and the next step other streams
REPLACEMENT, REPLACED_EVERY = 7, 2  # the text token that replaces a drawn word, in every second step
TIE = 1e-3  # of the best candidate's share: float32 rounding decides between shares this close


def sampling_measure(stages: Stages, codes: Tokens, padding: int) -> Measure:
    """Draw tokens in slot 0 of `stages`, which must have logits, for a token history [T, 17]; resets the slot.

    `padding`: the text token between words.
    """
    stages.reset(0, len(codes))
    noise = stages.make_noise()
    noise.open(0, seed=0)
    wrong = [
        _wrong(stages, noise, codes[step], step, sampling, padding)
        for step, sampling in enumerate(islice(cycle(SETTINGS), STEPS))
    ]
    noise.close(0)
    _restore(stages)
    stages.reset(0, STEPS)
    by_stream = np.sum(wrong, axis=0)
    names = ("text", *(f"codebook {k}" for k in range(len(by_stream) - 1)))
    return Measure(
        "drift.sampled",
        int(by_stream.sum()),
        "tokens",
        f"Wrong tokens in {STEPS} steps: they do not follow from the engine's own logits, the noise, temperature, top-k, "
        "forced and replaced tokens, or the next codebook does not use them.",
        Tolerance(0, "the same arithmetic on the same numbers in every precision; ties pass"),
        ", ".join(f"{name}: {count}" for name, count in zip(names, by_stream, strict=True) if count),
    )


def _wrong(stages: Stages, noise: Noise, codes: Tokens, step: int, sampling: Sampling, padding: int) -> list[bool]:
    """Flags of the streams [1 + K] that were drawn wrongly in one step."""
    forced = np.where((np.arange(1 + stages.forced_audio.shape[1]) + step) % FORCED_EVERY, -1, FORCED)
    stages.codes[0, 0], stages.position[0] = codes, step
    stages.forced_text[0], stages.forced_audio[0] = forced[0], forced[1:]
    stages.replacement[0] = replacement = -1 if step % REPLACED_EVERY else REPLACEMENT
    stages.text_temperature[0], stages.text_top_k[0] = sampling.text_temperature, sampling.text_top_k
    stages.audio_temperature[0], stages.audio_top_k[0] = sampling.audio_temperature, sampling.audio_top_k
    noise.draw(np.zeros(1, np.intp))
    stages.run("temporal", 1)
    stages.run("depth", 1)
    logits = stages.tensors("depth")["audio_logits"][0].copy()  # [K, card]
    stages.forced_audio[0] = tokens = stages.audio_tokens[0].copy()
    stages.run("depth", 1)
    follows = (stages.tensors("depth")["audio_logits"][0] == logits).all(
        -1
    )  # [K] same logits for drawn and forced tokens
    text_logits, draw = stages.tensors("temporal")["text_logits"][0], int(stages.draw[0])
    of_text, *of_audio = (
        noise_of(stages.noise[0], *keys, np.arange(card))
        for keys, card in zip(
            zip(stages.noise_offset[0].tolist(), stages.noise_stride[0].tolist(), strict=True),
            (len(text_logits), *map(len, logits)),
            strict=False,
        )
    )
    text = (text_logits, of_text, sampling.text_temperature, sampling.text_top_k, -1, draw)
    said = _said(draw, int(forced[0]), replacement, padding)
    audio = zip(logits, of_audio, forced[1:], tokens, follows, strict=True)
    return [
        not may_be_drawn(*text) or int(stages.text_token[0]) != said,
        *(
            not (follow and may_be_drawn(given, draws, sampling.audio_temperature, sampling.audio_top_k, force, token))
            for given, draws, force, token, follow in audio
        ),
    ]


def _said(draw: int, forced: int, replacement: int, padding: int) -> int:
    """The text token that a step must give for its draw."""
    if forced >= 0:
        return forced
    return draw if replacement < 0 or draw in (padding, END_OF_PADDING) else replacement


def may_be_drawn(logits: Floats, noise: Floats, temperature: float, top_k: int, forced: int, token: int) -> bool:
    """Whether a token wins the race of `export.layers.sample` or ties with the winner; logits and noise [card]."""
    if forced >= 0:
        return token == forced
    if not 0 <= token < len(logits):
        return False
    race = np.exp((logits.astype(np.float64) - logits.max()) / temperature) / noise
    least = np.sort(logits)[-min(top_k, MAX_CANDIDATES, len(logits))]
    # If several tokens share the last candidate's logit, any may be a candidate. The token must beat the certain candidates.
    return bool(logits[token] >= least and race[token] >= (1 - TIE) * race[logits > least].max(initial=0))


def _restore(stages: Stages) -> None:
    """Reset the settings of slot 0."""
    for array in (stages.text_temperature, stages.audio_temperature):
        array[0] = 1
    for array in (stages.text_top_k, stages.audio_top_k, stages.forced_text, stages.forced_audio):
        array[0] = 0
    stages.replacement[0] = -1
