"""A conversation as a stereo file: the user on the left, the agent on the right."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.logs import LOGGER


class Recording:
    """A FLAC file that grows by a frame at a time, and takes its name when it is closed.

    A disk that is full ends the recording, is logged once, and leaves the `.part`: the conversation goes on.
    """

    def __init__(self, folder: Path, name: str):
        self.path, self._name = folder / f"{name}.flac", name
        self._partial = folder / f"{name}.part"
        self._file: soundfile.SoundFile | None = (
            None  # opened by the first frame, in the thread that may wait for a disk
        )
        self._has_failed = False

    def write(self, user: Pcm, agent: Pcm) -> None:
        """One frame of each, [1920] float32."""
        if self._has_failed:
            return
        try:
            if self._file is None:
                self._file = soundfile.SoundFile(
                    self._partial, "w", SAMPLE_RATE_HZ, channels=2, format="FLAC", subtype="PCM_16"
                )
            self._file.write(np.clip(np.stack([user, agent], axis=1), -1, 1))
        except (
            OSError,
            soundfile.SoundFileError,
            AssertionError,
        ) as error:  # the last is soundfile's for a short write
            self._fail(error)

    def close(self) -> None:
        """Finish the file. Closing it again does nothing."""
        if self._file is None or self._has_failed or self._file.closed:
            return
        try:
            self._file.close()
            self._partial.replace(self.path)
        except (OSError, soundfile.SoundFileError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._has_failed = True
        facts = {"conversation": self._name, "file": str(self._partial), "reason": str(error) or type(error).__name__}
        LOGGER.error("a recording ended early", extra=facts)
        if self._file is not None and not self._file.closed:
            with suppress(OSError, soundfile.SoundFileError):  # its last samples do not fit either
                self._file.close()
