"""The drift section: on a forced token history, how do token distributions differ from the reference's?

Called by `validate.validation`.
"""

from collections.abc import Iterator

import numpy as np

from pplex.export.checkpoint import Checkpoint
from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import PromptError
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.sampling import Sampling
from pplex.runtime.stages import Stages
from pplex.runtime.tolerances import tolerances
from pplex.runtime.voice_file import Voice
from pplex.validate.drift import Drift, Numbers, drift, engine_blocks, reference_blocks, voice_distance
from pplex.validate.report.schema import Measure, Plot, Section, Series, Table, Tolerance
from pplex.validate.sections.sampling import sampling_measure
from pplex.validate.sections.window import window_measure

SELF_TEST_STEPS = 192
VOICE_MARGIN = 5
WINDOW = 50  # steps in a point of the plot: 8 lines of 3,000 points would be unreadable
_HIDDEN = ("over twice the value of random models", "float32 sums in another order reach 1e-12")
_DRAWS = (
    "on average no set of tokens changes in probability by over {:.0%} (Pinsker); over twice the value of random models"
)


def drift_section(bundle: Bundle, checkpoint: Checkpoint, stages: Stages, codes: Tokens) -> Section:
    """Force slot 0 of `stages`, which must have logits, and the reference through codes [T + 1, 17]."""
    config = bundle.config
    found = drift(engine_blocks(stages, codes), reference_blocks(checkpoint, config, codes), codes)
    window = window_measure("drift.window", stages, codes, config.temporal.capacity)  # while the ring is full
    few = codes[: SELF_TEST_STEPS + 1]
    itself = drift(reference_blocks(checkpoint, config, few), reference_blocks(checkpoint, config, few), few)
    steps, ring = len(found.hidden), config.temporal.capacity
    return Section(
        "drift",
        "Drift",
        "With the same forced tokens, does the bundle predict the same next tokens?",
        (_self_test(itself), *_measures(bundle, found), window, *_prompt_measures(bundle, checkpoint, stages, codes)),
        (_codebook_table(found),),
        tuple(_plots(found, ring)),
        (
            f"{steps} steps of a persona and speech, with the tokens of user and agent forced, frame by frame"
            + (
                f", {steps - ring} of them past the end of the ring."
                if steps > ring
                else "; the ring's end is not reached."
            ),
            "Divergence is Kullback-Leibler, from the reference to the engine, in nats at temperature 1. Audio: all "
            "codebooks, each with the forced codes before it as input.",
        ),
    )


def _prompt_measures(bundle: Bundle, checkpoint: Checkpoint, stages: Stages, codes: Tokens) -> Iterator[Measure]:
    """Measures that forced steps cannot give: sampling, and the embeddings of a voice."""
    yield sampling_measure(stages, codes, bundle.config.text_padding)
    name, voice = next(((name, one) for name, one in bundle.voices.items() if isinstance(one, Voice)), ("", None))
    if voice is None:
        return
    limit = round(VOICE_MARGIN * bundle.specs["temporal"].tolerances["hidden"], 12)
    try:
        distance = voice_distance(stages, checkpoint, bundle.config, voice)
    except PromptError:
        return
    yield Measure(
        "drift.voice",
        distance,
        "",
        f"1 - cosine of the hidden states after the voice prompt {name}, primed in chunks.",
        Tolerance(
            limit,
            f"{VOICE_MARGIN} times the limit of the mean, because this is a single step, after a voice's embeddings, which "
            "differ from the speech that the limit was measured with",
        ),
    )


def _self_test(itself: Drift) -> Measure:
    zeros = [itself.hidden, itself.text_kl, itself.audio_kl, 1 - itself.text_same, 1 - itself.audio_same]
    zeros += [1 - itself.text_overlap, 1 - itself.audio_overlap]
    zeros += [(itself.text_nll - itself.text_own_nll)[~np.isnan(itself.text_nll)]]  # NaN: no next token
    return Measure(
        "drift.self_test",
        float(np.max([np.abs(values).max() for values in zeros])),
        "",
        f"The reference against itself, computed twice over {len(itself.hidden)} steps: the largest of all these measures.",
        Tolerance(0, "the same computation gives the same bits; another value is a fault of the measurement"),
    )


def _measures(bundle: Bundle, found: Drift) -> Iterator[Measure]:
    limits, twin = bundle.specs["temporal"].tolerances, bundle.precision["temporal"]
    # The depth transformer inherits the error of the temporal transformer's hidden state.
    rings, names = bundle.config.int8_rings, (twin, bundle.precision["depth"])
    audio_kl = max(tolerances("depth", name, rings)["audio_kl"] for name in names)
    worst = int(found.hidden.argmax())
    yield Measure(
        "drift.hidden",
        float(found.hidden.mean()),
        "",
        "1 - cosine of the hidden states, mean.",
        Tolerance(limits["hidden"], _HIDDEN[bundle.specs["temporal"].exact]),
    )
    yield Measure(
        "drift.hidden_worst",
        float(found.hidden.max()),
        "",
        "1 - cosine of the hidden states, worst step.",
        None,
        f"step {worst}",
    )
    for name, values, limit in (("text", found.text_kl, limits["text_kl"]), ("audio", found.audio_kl, audio_kl)):
        yield Measure(
            f"drift.{name}_kl",
            float(values.mean()),
            "nats",
            f"Divergence of the distributions of {name} tokens, mean.",
            Tolerance(limit, _DRAWS.format(min(1.0, (limit / 2) ** 0.5))),
        )
        yield Measure(
            f"drift.{name}_kl_p99", float(np.percentile(values, 99)), "nats", f"The same for {name}, 99th percentile."
        )
    yield from _agreement(bundle, found)
    for name, expected, own in (
        ("text", found.text_nll, found.text_own_nll),
        ("audio", found.audio_nll, found.audio_own_nll),
    ):
        ratio = float(np.exp(np.nanmean(own) - np.nanmean(expected)) - 1)
        yield Measure(
            f"drift.{name}_perplexity",
            ratio,
            "",
            f"Perplexity of the next {name} tokens: the engine's divided by the reference's, minus 1.",
        )


def _agreement(bundle: Bundle, found: Drift) -> Iterator[Measure]:
    exact, sampling = all(bundle.specs[graph].exact for graph in LANGUAGE_GRAPHS), Sampling()
    for name, same, overlap, k in (
        ("text", found.text_same, found.text_overlap, sampling.text_top_k),
        ("audio", found.audio_same, found.audio_overlap, sampling.audio_top_k),
    ):
        yield Measure(
            f"drift.{name}_top1",
            float(same.mean()),
            "",
            f"Share of steps whose most probable {name} token is the same.",
            Tolerance(1, "float32 rounding changes only the choice between ties, which count as the same", least=True)
            if exact
            else None,
        )
        yield Measure(
            f"drift.{name}_top{k}",
            float(overlap.mean()),
            "",
            f"Share of the {k} most probable {name} tokens that both have.",
        )


def _codebook_table(found: Drift) -> Table:
    rows = [("text", found.text_kl, found.text_same, found.text_overlap)]
    audio = zip(found.audio_kl.T, found.audio_same.T, found.audio_overlap.T, strict=True)
    rows += [(f"codebook {k}", *values) for k, values in enumerate(audio)]
    columns = ("stream", "divergence (nats)", "99th percentile", "largest", "same choice", "top k in common")
    return Table("By stream", columns, tuple((name, *_figures(kl, same, common)) for name, kl, same, common in rows))


def _figures(kl: Numbers, same: Numbers, common: Numbers) -> tuple[float, ...]:
    return tuple(map(float, (kl.mean(), np.percentile(kl, 99), kl.max(), same.mean(), common.mean())))


def _by_codebook(found: Drift) -> Iterator[Series]:
    starts = np.arange(0, len(found.audio_kl), WINDOW)
    sums = np.add.reduceat(found.audio_kl, starts)  # [windows, K]
    means = sums / np.diff([*starts, len(found.audio_kl)])[:, None]
    for k, values in enumerate(means.T):
        yield Series(f"codebook {k}", tuple(map(float, starts)), tuple(map(float, values)))


def _plots(found: Drift, ring: int) -> Iterator[Plot]:
    steps = tuple(float(step) for step in range(len(found.hidden)))
    marks = ((float(ring), "ring's end"),) if ring < len(steps) else ()
    divergences = (
        Series("text", steps, tuple(map(float, found.text_kl))),
        Series("audio", steps, tuple(map(float, found.audio_kl.mean(1)))),
    )
    yield Plot("Divergence by step", "line", "step", "nats", divergences, log_y=True, marks=marks)
    yield Plot(
        f"Divergence by codebook, means of {WINDOW} steps",
        "line",
        "step",
        "nats",
        tuple(_by_codebook(found)),
        True,
        (),
        marks,
    )
    hidden = (Series("hidden state", steps, tuple(map(float, found.hidden))),)
    yield Plot("Hidden state by step", "line", "step", "1 - cosine", hidden, log_y=True, marks=marks)
    books = tuple(float(k) for k in range(1 + found.audio_kl.shape[1]))
    means = (float(found.text_kl.mean()), *map(float, found.audio_kl.mean(0)))
    ticks = ("text", *(str(k) for k in range(found.audio_kl.shape[1])))
    yield Plot("Divergence by stream", "bar", "text, codebooks", "nats", (Series("mean", books, means),), True, ticks)
