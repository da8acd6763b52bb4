"""Transcriber thread: gives the users' utterances to a process with a Whisper model, and their words to the conversations.

`server.app` makes one for `serve --transcribe`. The speech thread puts utterances in (`server.listening`). No conversation
waits for it: if it falls behind, utterances are dropped.
"""

import threading
from collections import OrderedDict, deque
from importlib.util import find_spec
from typing import NamedTuple, Protocol

from pplex.runtime.errors import LibraryError
from pplex.runtime.libraries import install_command
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.scheduler import now_s
from pplex.server.user_utterances import Utterance
from pplex.server.whisper import Segment, TranscriberError, UtteranceError, Whisper

WAITING_OF_ONE = 3  # utterances of one conversation
WAITING = 32  # of all: up to 46 MB
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a process that ended is started again


class Speaker(Protocol):
    """Whose utterances are transcribed: one conversation's `Listener`."""

    def heard(self, utterance: Utterance, segments: list[Segment]) -> None:
        """Takes the words, in the transcriber's thread."""


class _Waiting(NamedTuple):
    utterance: Utterance
    ended_s: float


class Transcriber:
    """Transcribes for all conversations, in turns, from `start` to `stop`. A process that ends is started again."""

    def __init__(self, model: str, metrics: Metrics):
        self._model, self._metrics = model, metrics
        self._changed = threading.Condition()  # guards what follows
        self._waiting: OrderedDict[Speaker, deque[_Waiting]] = OrderedDict()  # the next speaker is first
        self._whisper: Whisper | None = None
        self._is_loaded = self._is_stopping = False
        self._failure: Exception | None = None  # of the first load
        self._pause_s = FIRST_PAUSE_S
        self._thread = threading.Thread(target=self._run, name="transcriber", daemon=True)

    # From any thread.

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait_until_loaded(self) -> None:
        """Wait for the model's first load, or for `stop`. Raises TranscriberError."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_loaded or self._is_stopping or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    def put(self, speaker: Speaker, utterance: Utterance) -> None:
        """Add an utterance. If too many wait, the oldest of the speaker is dropped; if they are others', the new one."""
        with self._changed:
            waiting = self._waiting.setdefault(speaker, deque())
            waiting.append(_Waiting(utterance, now_s()))
            if len(waiting) > WAITING_OF_ONE or sum(map(len, self._waiting.values())) > WAITING:
                waiting.popleft()
                self._metrics.utterances.labels("dropped").inc()
            if not waiting:
                del self._waiting[speaker]
            self._changed.notify_all()

    def forget(self, speaker: Speaker) -> None:
        """Drop what waits of a speaker whose conversation is over."""
        with self._changed:
            self._waiting.pop(speaker, None)

    def stop(self) -> None:
        """End the process and the thread, without the utterances that wait."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
            if self._whisper is not None:
                self._whisper.end()
        self._thread.join()

    # The thread.

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._run_process()
            except Exception as error:
                if self._is_stopping:
                    return
                if not isinstance(error, TranscriberError):
                    LOGGER.exception("the transcriber failed")
                if not self._is_loaded:
                    return self._give_up(error)
                self._rest(error)

    def _run_process(self) -> None:
        """Start a process, and transcribe with it until it ends or the server stops."""
        whisper = Whisper(self._model)
        try:
            with self._changed:
                self._whisper = whisper
                if self._is_stopping:
                    return
            whisper.wait_until_loaded(again=self._is_loaded)
            with self._changed:
                self._is_loaded = True
                self._changed.notify_all()
            LOGGER.info("transcriber ready", extra={"model": self._model, "pid": whisper.pid})
            while (next_one := self._next()) is not None:
                self._transcribe(whisper, *next_one)
        finally:
            with self._changed:
                self._whisper = None
            whisper.close()

    def _next(self) -> tuple[Speaker, _Waiting] | None:
        """The next utterance, of the speaker who has waited longest for a turn; None at the stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            if self._is_stopping:
                return None
            speaker, waiting = self._waiting.popitem(last=False)
            first = waiting.popleft()
            if waiting:
                self._waiting[speaker] = waiting
            return speaker, first

    def _transcribe(self, whisper: Whisper, speaker: Speaker, waiting: _Waiting) -> None:
        result = "failed"
        try:
            segments = whisper.transcribe(waiting.utterance.frames)
            speaker.heard(waiting.utterance, segments)
            result = "heard" if segments else "empty"
            self._metrics.words_seconds.observe(now_s() - waiting.ended_s)
            self._pause_s = FIRST_PAUSE_S
        except UtteranceError as error:
            LOGGER.warning("an utterance was not transcribed", extra={"reason": str(error)})
        finally:
            self._metrics.utterances.labels(result).inc()

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _rest(self, error: Exception) -> None:
        """Wait before the next process: longer each time, until one has transcribed something."""
        with self._changed:
            LOGGER.warning("the transcriber starts again", extra={"reason": str(error), "in_seconds": self._pause_s})
            self._changed.wait_for(lambda: self._is_stopping, self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._metrics.transcriber_restarts.inc()


def open_transcriber(model: str, metrics: Metrics) -> Transcriber:
    """A transcriber. Looks for faster-whisper, without importing it into the server. Raises LibraryError."""
    if find_spec("faster_whisper") is None:
        cure = install_command("faster_whisper")
        raise LibraryError(f"--transcribe needs faster-whisper, which is not installed: {cure}")
    return Transcriber(model, metrics)
