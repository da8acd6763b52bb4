"""The speed section for steps of known time."""

import numpy as np
import pytest

from pplex.validate.recording import FRAME, Recorded
from pplex.validate.sections.speed import speed_section


def timed(*frame_ms: float) -> Recorded:
    whole = np.array(frame_ms) / 1000
    return Recorded((), {"temporal": whole / 2, FRAME: whole}, sessions=3)


def test_percentiles_by_stage_without_the_first_steps() -> None:
    section = speed_section(timed(*[500] * 20, *range(1, 102)), 80, "a device")
    found = {measure.name: measure.value for measure in section.measures}
    assert [found[f"speed.frame_p{p}_ms"] for p in (50, 95, 99)] == pytest.approx([51, 96, 100])
    assert section.tables[0].rows[0] == ("temporal", *map(pytest.approx, (25.5, 48, 50)))
    assert found["speed.real_time_factor"] == pytest.approx(51 / 80)
    assert found["speed.late_frames"] == pytest.approx(21 / 101)
    assert section.notes == ("Measured on a device, with up to 3 conversations in a frame.",)


def test_few_steps_are_all_counted_and_nothing_has_a_limit() -> None:
    section = speed_section(timed(100, 200, 300), 80, "a device")
    assert section.measures[0].value == pytest.approx(200) and not section.failures
    assert section.tables[0].title.endswith("3 frames")
    memory = section.measures[-1].value
    assert memory is not None and memory > 1
