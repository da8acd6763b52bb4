"""The server's side of the process that transcribes (`server.whisper_process`). Called by `server.transcriber`."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from typing import Any, NamedTuple

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.errors import PplexError
from pplex.runtime.ort import available_threads
from pplex.server.options import DEFAULT_MODEL
from pplex.server.pcm16 import quantized

MOST_THREADS = 4  # at most a quarter of the processors: the others step the conversations
ANSWER_S = 120.0  # for an utterance; a process without an answer is ended
RELOAD_S = 300.0  # for a model that was loaded before: nothing has to be downloaded
END_S = 1.0


class TranscriberError(PplexError):
    """The process that transcribes cannot load its model, has ended, or does not answer."""


class UtteranceError(PplexError):
    """One utterance could not be transcribed; the process goes on."""


class Segment(NamedTuple):
    """Some words, with their leading space, and their seconds from the beginning of the utterance."""

    text: str
    start_s: float
    end_s: float


class Whisper:
    """A new process with a model. It ends with the server, whichever way the server ends. Raises TranscriberError."""

    def __init__(self, model: str):
        self._model = model
        self._connection, theirs = Pipe()
        number = str(theirs.fileno())
        threads = str(max(1, min(MOST_THREADS, available_threads() // 4)))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pplex.server.whisper_process", number, model, threads],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the server's output has one line, and its log is JSON
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise TranscriberError(f"the transcriber cannot be started: {error}") from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_loaded(self, again: bool) -> None:
        """Wait for the model, the first time perhaps for its download. Raises TranscriberError."""
        try:
            self._answer(RELOAD_S if again else None)
        except UtteranceError as error:
            raise TranscriberError(
                f"--transcribe {self._model}: the model cannot be loaded: {error}\n"
                "Give a folder with a Whisper model in CTranslate2's format, or one of faster-whisper's names, such as "
                f"{DEFAULT_MODEL}: it is downloaded from the Hugging Face hub, and then kept in the hub's cache."
            ) from error

    def transcribe(self, frames: Sequence[Pcm]) -> list[Segment]:
        """The words in some frames. Raises UtteranceError, or TranscriberError if the process is of no more use."""
        late = threading.Timer(ANSWER_S, self.end)  # a process that has stopped does not take it either
        late.start()
        try:
            self._connection.send_bytes(quantized(np.concatenate(frames)).tobytes())
        except OSError as error:
            raise self._ended() from error
        finally:
            late.cancel()
        return [Segment(*one) for one in self._answer(ANSWER_S)]

    def end(self) -> None:
        """End the process, from any thread. A second call does nothing."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and free what belongs to it."""
        self.end()
        self._process.wait()
        self._connection.close()

    def _answer(self, seconds: float | None) -> Any:
        try:
            if not self._connection.poll(seconds):
                raise TranscriberError(f"the transcriber did not answer for {seconds:g} s")
            kind, *values = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if kind == "error":
            raise UtteranceError(*values)
        return values[0] if values else None

    def _ended(self) -> TranscriberError:
        with suppress(subprocess.TimeoutExpired):  # it ends by itself: its own exit code says more
            self._process.wait(END_S)
        self.end()
        return TranscriberError(f"the transcriber ended with exit code {self._process.wait()}")
