"""When the user speaks, by loudness."""

import json
from typing import Any

import numpy as np
import pytest

from pplex.server.user_speech import END_FRAMES, UserSpeech

FRAME = 1920
LOUD = np.full(FRAME, 0.1, np.float32)
QUIET = np.full(FRAME, 0.001, np.float32)


def heard(user: UserSpeech, *frames: np.ndarray) -> list[dict[str, Any]]:
    """The events while a user speaks these frames, one in 80 ms."""
    events = []
    for frame in frames:
        user.hear(frame)
        events += user.step()
    return list(map(json.loads, events))


def test_speech_begins_and_ends_with_its_times() -> None:
    events = heard(UserSpeech(), *[QUIET] * 5, *[LOUD] * 10, *[QUIET] * 20)
    assert [event["type"] for event in events] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
    ]
    assert (events[0]["audio_start_ms"], events[1]["audio_end_ms"]) == (400, 1200)
    assert events[0]["item_id"] == events[1]["item_id"] and events[0]["event_id"] != events[1]["event_id"]


def test_a_click_is_no_speech_and_a_short_pause_no_end() -> None:
    assert heard(UserSpeech(), QUIET, LOUD, LOUD, QUIET, LOUD, *[QUIET] * 20) == []
    events = heard(UserSpeech(), *[LOUD] * 5, *[QUIET] * (END_FRAMES - 1), *[LOUD] * 5)
    assert len(events) == 1


@pytest.mark.parametrize("size", [160, 480, 2400, 4800, 7777])
def test_the_size_of_chunks_does_not_matter(size: int) -> None:
    samples = np.concatenate([*[QUIET] * 5, *[LOUD] * 25, *[QUIET] * 25])
    events, at = [], 0
    user = UserSpeech()
    for frame in range(1, 61):
        while at < len(samples) and at + size <= frame * FRAME:
            user.hear(samples[at : at + size])
            at += size
        events += map(json.loads, user.step())
    assert [event.get("audio_start_ms", event.get("audio_end_ms")) for event in events] == [400, 2400]


def test_a_user_whose_microphone_is_switched_off_stops() -> None:
    user = UserSpeech()
    heard(user, *[LOUD] * 5)
    events = [event for _ in range(END_FRAMES + 10) for event in user.step()]
    assert [json.loads(event)["type"] for event in events] == ["input_audio_buffer.speech_stopped"]
    assert user.step() == []
