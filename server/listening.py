"""One conversation's way to the transcriber: its user's utterances go there, and their words come back for the client.

Made by `server.conversation` for `serve --transcribe`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from pplex.runtime.arrays import Pcm
from pplex.server.transcriber import Transcriber
from pplex.server.user_utterances import Utterance, UtteranceCutter, Words, milliseconds
from pplex.server.whisper import Segment


class Listener:
    """Listens to one user. `tell` is called in the event loop with the words of an utterance, for one after the other."""

    def __init__(self, transcriber: Transcriber, tell: Callable[[list[Words]], None]):
        self._transcriber, self._tell = transcriber, tell
        self._loop = asyncio.get_running_loop()
        self._cutter = UtteranceCutter()
        self._is_closed = False

    def hear(self, pcm: Pcm, is_wanted: bool) -> None:
        """Take a frame that the model heard [1920], in the speech thread. `is_wanted`: whether the client gets words now."""
        if not is_wanted:
            return self._cutter.skip()
        utterance = self._cutter.hear(pcm)
        if utterance is not None and not self._is_closed:
            self._transcriber.put(self, utterance)

    def heard(self, utterance: Utterance, segments: list[Segment]) -> None:
        """Pass on the words, from the transcriber's thread."""
        words = [
            Words(text, milliseconds(utterance, start_s), milliseconds(utterance, end_s))
            for text, start_s, end_s in segments
        ]
        if words:
            with suppress(RuntimeError):  # the loop is closed: the server ends
                self._loop.call_soon_threadsafe(self._tell, words)

    def close(self) -> None:
        """The conversation is over: nobody waits for words any more."""
        self._is_closed = True
        self._transcriber.forget(self)
