"""Records a conversation as a stereo file: the user on the left, the agent on the right. Called by `server.speech`."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.server.logs import LOGGER


class Recording:
    """A FLAC file that grows by one frame at a time, and gets its name when it is closed.

    A full disk ends the recording, is logged once, and leaves the `.part`. The conversation continues.
    """

    def __init__(self, folder: Path, name: str):
        self.path, self._name = folder / f"{name}.flac", name
        self._partial = folder / f"{name}.part"
        self._file: soundfile.SoundFile | None = (
            None  # opened at the first frame, in the speech thread, which may wait for a disk
        )
        self._has_failed = False

    def write(self, user: Pcm, agent: Pcm) -> None:
        """Add one frame of each speaker, [1920] float32."""
        if self._has_failed:
            return
        try:
            if self._file is None:
                self._file = soundfile.SoundFile(
                    self._partial, "w", SAMPLE_RATE_HZ, channels=2, format="FLAC", subtype="PCM_16"
                )
            self._file.write(np.clip(np.stack([user, agent], axis=1), -1, 1))
        except (OSError, soundfile.SoundFileError, AssertionError) as error:  # AssertionError: an incomplete write
            self._fail(error)

    def close(self) -> None:
        """Finish the file. A second call does nothing."""
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
            with suppress(OSError, soundfile.SoundFileError):  # the last samples do not fit either
                self._file.close()
