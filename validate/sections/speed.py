"""The speed section: the time of the engine's frames during the recordings. Called by `validate.validation`."""

import numpy as np

from pplex.measure.conversation import WARM_UP_FRAMES
from pplex.measure.memory import peak_memory_mb
from pplex.validate.recording import FRAME, Recorded, Seconds
from pplex.validate.report.schema import Measure, Section, Table

PERCENTILES = (50, 95, 99)


def speed_section(recorded: Recorded, frame_ms: float, device: str) -> Section:
    """Milliseconds of every stage and of the whole frame in a step. Speed depends on the machine, so it has no tolerance.

    frame_ms: the length of a frame; device: the name of the engine's device.
    """
    milliseconds = {name: 1000 * _warm(seconds) for name, seconds in recorded.seconds.items()}
    whole = milliseconds[FRAME]
    rows: list[tuple[str | float, ...]] = [(name, *_percentiles(values)) for name, values in milliseconds.items()]
    frame = zip(PERCENTILES, _percentiles(whole), strict=True)
    factor = float(whole.mean()) / frame_ms
    late = float((whole > frame_ms).mean())
    measures = (
        *(Measure(f"speed.frame_p{p}_ms", value, "ms", f"A whole frame, {p}th percentile") for p, value in frame),
        Measure("speed.real_time_factor", factor, "", "Seconds of computing for a second of audio; must be below 1"),
        Measure("speed.late_frames", late, "share", f"Share of frames that took longer than {frame_ms:g} ms"),
        Measure("speed.peak_memory_mb", peak_memory_mb(), "MB", "Peak memory of this process, with the reference"),
    )
    columns = ("stage", *(f"p{p}" for p in PERCENTILES))
    return Section(
        key="speed",
        title="Speed",
        question="How long does a frame take, and does the agent keep up?",
        measures=measures,
        tables=(Table(f"Milliseconds a frame, {len(whole)} frames", columns, tuple(rows)),),
        notes=(f"Measured on {device}, with up to {recorded.sessions} conversations in a frame.",),
    )


def _percentiles(values: Seconds) -> list[float]:
    return [float(value) for value in np.percentile(values, PERCENTILES)]


def _warm(seconds: Seconds) -> Seconds:
    """Without the warm-up steps, if there are more steps."""
    return seconds[WARM_UP_FRAMES:] if len(seconds) > WARM_UP_FRAMES else seconds
