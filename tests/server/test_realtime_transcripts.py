"""What a user said, as an item of a Realtime conversation."""

import json

from pplex.server.realtime_items import Items
from pplex.server.realtime_protocol import RealtimeProtocol, RealtimeTerms
from pplex.server.realtime_transcripts import transcript_events
from pplex.server.user_utterances import Words

SAID = [Words(" Good morning.", 800, 2000), Words(" A pizza, please.", 2100, 3300)]


def test_an_utterance_is_one_item_with_its_transcript_after_it() -> None:
    items = Items()
    first, second = ([json.loads(each) for each in transcript_events(items, SAID)] for _ in range(2))
    added, done, completed = first
    assert [event["type"] for event in first] == [
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
    ]
    item = added["item"]
    assert (item["role"], item["content"]) == ("user", [{"type": "input_audio", "transcript": None}])
    assert done["item"] == item and added["previous_item_id"] is None
    assert completed["item_id"] == item["id"] == second[0]["previous_item_id"] and completed["content_index"] == 0
    assert completed["transcript"] == "Good morning. A pizza, please."
    assert completed["usage"] == {"type": "duration", "seconds": 2.5}
    assert all(type(event["event_id"]) is str for event in first)
    kept = items.get(item["id"])
    assert kept is not None and kept["content"][0]["transcript"] == completed["transcript"]


def test_only_a_session_with_transcription_takes_words() -> None:
    protocol = RealtimeProtocol(RealtimeTerms())

    def wants(transcription: object) -> bool:
        session = {"type": "realtime", "audio": {"input": {"transcription": transcription}}}
        protocol.parse(json.dumps({"type": "session.update", "session": session}))
        return protocol.takes_words

    assert not protocol.takes_words
    assert wants({"model": "whisper-1"}) and wants({}) and not wants(None)
