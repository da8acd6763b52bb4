"""A conversation as a stereo file: the user on the left, the agent on the right."""

from pathlib import Path

import numpy as np
import soundfile

from pplex.runtime.audio import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ


class Recording:
    """A FLAC file that grows by a frame at a time, and takes its name when it is closed."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / f"{name}.flac"
        self._partial = folder / f"{name}.part"
        self._file = soundfile.SoundFile(
            self._partial, "w", SAMPLE_RATE_HZ, channels=2, format="FLAC", subtype="PCM_16"
        )

    def write(self, user: Pcm, agent: Pcm) -> None:
        """One frame of each, [1920] float32."""
        self._file.write(np.clip(np.stack([user, agent], axis=1), -1, 1))

    def close(self) -> None:
        """Finish the file. Closing it again does nothing."""
        if not self._file.closed:
            self._file.close()
            self._partial.replace(self.path)
