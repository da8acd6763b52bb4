"""Scenarios played to an agent."""

import io

import numpy as np
import pytest
import soundfile

from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import PromptError
from pplex.runtime.session import Runtime
from pplex.validate.recording import FRAME, HOST, Recorded, ScenarioRecording, make_runs, record
from pplex.validate.speech.scenarios import make_scenarios, synthetic_speech

SCENARIOS = make_scenarios(synthetic_speech(), 0.06)
RUNS = make_runs([5])


def recorded(bundle: Bundle, slots: int) -> Recorded:
    return record(Runtime(bundle, slots), SCENARIOS, RUNS, "NATF0", "Hi.")


@pytest.fixture(scope="module")
def one_by_one(tiny_bundle: Bundle) -> Recorded:
    return recorded(tiny_bundle, 1)


def test_every_scenario_in_every_run(one_by_one: Recorded) -> None:
    names = [f"{scenario.name}, {run}" for scenario in SCENARIOS for run in ("seed 5", "greedy")]
    assert [recording.name for recording in one_by_one.recordings] == names
    for recording in one_by_one.recordings:
        frames = int(np.ceil(recording.scenario.seconds / 0.08))
        assert recording.tokens.shape == (frames, 17) and recording.pcm.shape == (1920 * frames,)


def test_slots_do_not_change_the_recordings(tiny_bundle: Bundle) -> None:
    """Bit for bit at one batch size: another order changes the slots and the neighbours."""
    runtime = Runtime(tiny_bundle, 3, batches=[3])
    first, second = (
        {r.name: r for r in record(runtime, scenarios, RUNS, "NATF0", "Hi.").recordings}
        for scenarios in (SCENARIOS, SCENARIOS[::-1])
    )
    assert first.keys() == second.keys()
    for name, recording in first.items():
        assert np.array_equal(recording.tokens, second[name].tokens), name
        assert np.array_equal(recording.pcm, second[name].pcm), name


def test_recordings_equal_a_session(tiny_bundle: Bundle, one_by_one: Recorded) -> None:
    recording, run = one_by_one.recordings[0], RUNS[0]
    session = Runtime(tiny_bundle, 1).open("NATF0", "Hi.", run.seed, run.sampling)
    pcm = np.pad(recording.scenario.pcm, (0, len(recording.pcm) - len(recording.scenario.pcm)))
    replies = [session.step(frame) for frame in pcm.reshape(-1, 1920)]
    assert np.array_equal(np.stack([reply.tokens for reply in replies]), recording.tokens)
    assert np.array_equal(np.concatenate([reply.pcm for reply in replies]), recording.pcm)


def test_every_step_is_timed_by_stage(one_by_one: Recorded) -> None:
    steps = sum(len(recording.tokens) for recording in one_by_one.recordings)
    assert set(one_by_one.seconds) == {"mimi_encode", "temporal", "depth", "mimi_decode", HOST, FRAME}
    assert {len(seconds) for seconds in one_by_one.seconds.values()} == {steps}
    parts = sum(seconds for name, seconds in one_by_one.seconds.items() if name != FRAME)
    assert np.allclose(parts, one_by_one.seconds[FRAME]) and all((s > 0).all() for s in one_by_one.seconds.values())


def test_an_unknown_voice_leaves_the_slots_free(tiny_bundle: Bundle) -> None:
    runtime = Runtime(tiny_bundle, 2)
    with pytest.raises(PromptError):
        record(runtime, SCENARIOS, RUNS, "nobody", "")
    assert len(record(runtime, SCENARIOS[:1], RUNS, "NATF0", "").recordings) == 2


def test_wav_has_the_user_left_and_the_agent_right() -> None:
    scenario = SCENARIOS[0]
    agent = np.full(-(-len(scenario.pcm) // 1920) * 1920, 0.25, np.float32)
    agent[:3] = np.nan, 2.0, -2.0
    data, rate_hz = soundfile.read(
        io.BytesIO(ScenarioRecording(scenario, "", agent, np.zeros((1, 17), np.int64)).to_wav())
    )
    assert rate_hz == 24_000 and data.shape == (len(agent), 2)
    assert np.allclose(data[: len(scenario.pcm), 0], scenario.pcm, atol=1e-4) and not data[len(scenario.pcm) :, 0].any()
    assert np.allclose(data[:4, 1], [0, 1, -1, 0.25], atol=1e-4)
