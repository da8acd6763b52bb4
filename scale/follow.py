"""Copies the logs of replicas into one stream. Called by `cli.scaling`."""

import threading
from pathlib import Path
from typing import TextIO

PAUSE_S = 0.2


class Follower:
    """Copies whole lines of the files in a folder to `stream`, also of files that appear later, until it is stopped."""

    def __init__(self, folder: Path, stream: TextIO):
        self._folder, self._stream = folder, stream
        self._read = dict[Path, int]()  # bytes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._copy()

    def _run(self) -> None:
        while not self._stopping.wait(PAUSE_S):
            self._copy()

    def _copy(self) -> None:
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                found = file.read()
            whole = found[: found.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            self._stream.write(whole.decode(errors="replace"))
        self._stream.flush()
