"""The process of `serve --transcribe`: loads a Whisper model with faster-whisper, and turns utterances into words.

`server.whisper` starts it as `python -m pplex.server.whisper_process FILE_DESCRIPTOR MODEL THREADS`. Its answers are tuples:
("loaded",), ("words", [(text, start_s, end_s), ...]) or ("error", text).
"""

import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.pcm16 import scaled
from pplex.server.resampling import Resampler

NICE = 10
WHISPERS_HZ = 16_000
REPETITIVE = 2.4  # the text compresses better than this if the model repeats itself: Whisper's own limit


def main(descriptor: int, model: str, threads: int) -> None:
    """Load the model, and answer until the server ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to the server's whole group
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    connection = Connection(descriptor)
    utterances = queue.SimpleQueue[bytes]()
    threading.Thread(target=_read, args=(connection, utterances), daemon=True).start()
    try:
        whisper = load(model, threads)
        transcribe(whisper, bytes(2 * SAMPLE_RATE_HZ))  # loads the detector of speech, too
    except Exception as error:
        return connection.send(("error", _described(error)))
    connection.send(("loaded",))
    while True:
        pcm = utterances.get()
        try:
            connection.send(("words", transcribe(whisper, pcm)))
        except Exception as error:
            connection.send(("error", _described(error)))


def _read(connection: "Connection[Any, Any]", utterances: "queue.SimpleQueue[bytes]") -> None:
    """Receive utterances. When the server ends, end at once, also while the model works."""
    while True:
        try:
            utterances.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


def load(model: str, threads: int) -> Any:
    """The model in a folder, or one that faster-whisper downloads by its name. It runs on the processor."""
    from faster_whisper import WhisperModel

    return WhisperModel(model, device="cpu", compute_type="auto", cpu_threads=threads)


def transcribe(whisper: Any, pcm: bytes) -> list[tuple[str, float, float]]:
    """The words in an utterance of 16-bit samples at 24 kHz: texts with their leading spaces, and their seconds."""
    samples = scaled(np.frombuffer(pcm, np.int16))
    segments, _ = whisper.transcribe(
        Resampler(SAMPLE_RATE_HZ, WHISPERS_HZ).process(samples),
        language="en",  # the only language of the models that this server runs
        temperature=0.0,  # one attempt: others would take as long again
        condition_on_previous_text=False,
        vad_filter=True,
    )
    return [(one.text, one.start, one.end) for one in segments if one.compression_ratio < REPETITIVE]


def _described(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
