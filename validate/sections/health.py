"""The stream health section: silence during words, clipping, loops, runaway text.

Called by `validate.sections.names` and `validate.validation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.text import RESERVED
from pplex.runtime.token_path import AGENT, USER
from pplex.validate.recording import ScenarioRecording
from pplex.validate.report.schema import Measure, Section, Table, Tolerance

SILENCE_DBFS = -60.0
FULL_SCALE = 1.0
SOUNDS_WITHIN = 3  # frames, from the frame of a text token on, in which its sound must begin
LONGEST_LOOP = 16  # text tokens
LOOP_TIMES = 3  # repetitions in a row that make a loop

Flags = npt.NDArray[np.bool_]
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Symptom:
    """One symptom of bad health. Values up to `healthy` pass, and so do values up to the reference's plus `margin`."""

    what: str
    unit: str
    healthy: float
    margin: float

    def tolerance(self, reference: float | None, longest_s: float) -> Tolerance | None:
        """None if no value could be worse than the reference. `longest_s`: length of the longest recording."""
        limit = max(self.healthy, round((reference or 0.0) + self.margin, 4))
        if limit >= {"share": 1.0, "s": longest_s}.get(self.unit, float("inf")):
            return None
        return Tolerance(limit, f"healthy up to {self.healthy:g}, or up to {self.margin:g} above the reference")


SYMPTOMS: Mapping[str, Symptom] = MappingProxyType(
    {
        "non_finite": Symptom("Share of samples that are NaN or infinite", "share", 0, 0),
        "clipping": Symptom("Share of samples at or beyond full scale", "share", 0.001, 0.001),
        "dc_offset": Symptom("Absolute mean of the samples", "of full scale", 0.01, 0.005),
        "dead_air": Symptom(f"Share of text tokens without sound above {SILENCE_DBFS:g} dBFS", "share", 0.05, 0.05),
        "longest_dead_air": Symptom("Longest silence after a text token", "s", 1, 1),
        "repeated_frames": Symptom("Share of frames with the codes of the frame before", "share", 0.1, 0.1),
        "longest_repetition": Symptom("Longest run of frames with the same codes", "s", 1, 1),
        "looped_text": Symptom(
            f"Share of text tokens in the longest loop: up to {LONGEST_LOOP} tokens, {LOOP_TIMES} times or more",
            "share",
            0.2,
            0.1,
        ),
        "text_share": Symptom("Share of frames with a text token", "share", 0.6, 0.1),
        "longest_text": Symptom("Longest run of text tokens without padding", "s", 2, 1),
    }
)


def measure_health(pcm: Pcm, tokens: Tokens, frame_size: int) -> Values:
    """Every symptom's value in pcm [F * frame_size] with tokens [F, 17]; without text, None for symptoms that need text.

    A word is a text token that is not reserved; reserved tokens are padding.
    """
    finite = np.isfinite(pcm)
    sound = np.where(finite, pcm, 0).astype(np.float64)
    level = np.sqrt((sound.reshape(-1, frame_size) ** 2).mean(axis=1))
    frame_s = frame_size / SAMPLE_RATE_HZ
    words = tokens[:, 0] >= len(RESERVED)
    repeated = (np.diff(tokens[:, AGENT:USER], axis=0) == 0).all(axis=1)
    dead_share, dead_frames = _dead_air(words, level < 10 ** (SILENCE_DBFS / 20))
    return {
        "non_finite": float((~finite).mean()),
        "clipping": float((np.abs(sound) >= FULL_SCALE).mean()),
        "dc_offset": float(abs(sound.mean())),
        "dead_air": dead_share,
        "longest_dead_air": dead_frames and dead_frames * frame_s,
        "repeated_frames": float(repeated.mean()) if len(repeated) else 0.0,
        "longest_repetition": (longest_run(repeated) + 1) * frame_s if repeated.any() else 0.0,
        "looped_text": looped(tokens[words, 0]),
        "text_share": float(words.mean()),
        "longest_text": longest_run(words) * frame_s,
    }


def health_section(
    engine: Sequence[ScenarioRecording], reference: Sequence[ScenarioRecording], frame_size: int
) -> Section:
    """Compare the worst recordings of engine and reference, symptom by symptom."""
    ours, theirs = (_worst(recordings, frame_size) for recordings in (engine, reference))
    longest_s = max(len(recording.pcm) for recording in engine) / SAMPLE_RATE_HZ
    measures = [_measure(name, symptom, ours[name], theirs[name], longest_s) for name, symptom in SYMPTOMS.items()]
    rows = [(symptom.what, symptom.unit, theirs[name][0], ours[name][0]) for name, symptom in SYMPTOMS.items()]
    return Section(
        key="health",
        title="Stream health",
        question="Is the agent's stream free of silence during words, clipping, loops and runaway text?",
        measures=tuple(measures),
        tables=(Table("The worst of all recordings", ("symptom", "unit", "reference", "engine"), tuple(rows)),),
        notes=(
            *(f"{m.what}: the agent said no text, so this was not measured." for m in measures if m.value is None),
            *(
                f"{m.what}: no limit, because the reference already has the worst value."
                for m in measures
                if _has_no_limit(m)
            ),
        ),
    )


def _has_no_limit(measure: Measure) -> bool:
    return measure.value is not None and measure.tolerance is None


def _worst(recordings: Sequence[ScenarioRecording], frame_size: int) -> dict[str, tuple[float | None, str]]:
    """The largest value of each symptom, and its recording."""
    found = [(measure_health(r.pcm, r.tokens, frame_size), r.name) for r in recordings]
    worst: dict[str, tuple[float | None, str]] = {}
    for symptom in SYMPTOMS:
        values = [
            (value, name if value else "") for values_of, name in found if (value := values_of[symptom]) is not None
        ]
        worst[symptom] = max(values, key=lambda pair: pair[0], default=(None, ""))
    return worst


def _measure(
    name: str, symptom: Symptom, ours: tuple[float | None, str], theirs: tuple[float | None, str], longest_s: float
) -> Measure:
    value, where = ours
    tolerance = None if value is None else symptom.tolerance(theirs[0], longest_s)
    what = f"{symptom.what}, in the engine's worst recording"
    return Measure(f"health.{name}", value, symptom.unit, what, tolerance, where)


def _dead_air(words: Flags, silent: Flags) -> tuple[float | None, float | None]:
    """Share of words without sound, and the longest silence in frames that starts with a word; None without words."""
    spoken = np.flatnonzero(words)
    if not len(spoken):
        return None, None
    silence = _length_ahead(silent)[spoken]  # frames of silence from the word on
    left = np.minimum(SOUNDS_WITHIN, len(words) - spoken)  # the recording may end earlier
    return float((silence >= left).mean()), float(np.where(silence >= left, silence, 0).max())


def longest_run(flags: Flags) -> int:
    """The longest run of `True`."""
    return int(_length_ahead(flags).max(initial=0))


def _length_ahead(flags: Flags) -> npt.NDArray[np.int64]:
    """The length of the run of `True` that starts at each place."""
    places = np.arange(len(flags))
    ends = np.where(flags, len(flags), places)  # the next `False` at or after a place
    ahead: npt.NDArray[np.int64] = np.minimum.accumulate(ends[::-1])[::-1] - places
    return ahead


def looped(words: npt.NDArray[Any]) -> float:
    """The share of `words` [n] in the longest stretch that repeats the same 1 to 16 words three times or more."""
    longest = 0
    for period in range(1, min(LONGEST_LOOP, len(words) // LOOP_TIMES) + 1):
        again = longest_run(words[period:] == words[:-period]) + period
        if again >= LOOP_TIMES * period:
            longest = max(longest, again)
    return longest / len(words) if len(words) else 0.0
