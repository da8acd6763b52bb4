"""Runs calls of a library that does not stop on a signal: called by `export.hub`.

The hub's library downloads in threads that Python waits for when it ends. Daemon threads end with the process instead, so
Ctrl-C and SIGTERM take effect at once.
"""

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")
WORKERS = 4


def in_background(call: Callable[[], Result]) -> Result:
    """The result of one call. Raises its error, or KeyboardInterrupt at once."""
    return all_in_background([call])[0]


def all_in_background(calls: Sequence[Callable[[], Result]], workers: int = WORKERS) -> list[Result]:
    """The results of several calls, in their order. Raises the first error, or KeyboardInterrupt at once.

    After an error or a signal, no further call starts, and the running calls go on until the process ends.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    ended: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()
    stopped = threading.Event()
    for index in range(len(calls)):
        waiting.put(index)

    def work() -> None:
        while not stopped.is_set():
            try:
                index = waiting.get_nowait()
            except Empty:
                return
            try:
                ended.put((index, calls[index](), None))
            except BaseException as error:
                ended.put((index, None, error))

    for _ in range(min(workers, len(calls))):
        threading.Thread(target=work, daemon=True, name="hub").start()
    results: dict[int, Result] = {}
    try:
        while len(results) < len(calls):
            index, result, error = ended.get()
            if error is not None:
                raise error
            results[index] = result  # type: ignore[assignment]
    finally:
        stopped.set()
    return [results[index] for index in range(len(calls))]
