"""Torch over many pieces at once: one thread a piece, not all threads on each."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

from pplex.runtime.ort import available_threads

Piece = TypeVar("Piece")
Result = TypeVar("Result")
WIDE = 1024


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: a sum's last bits would differ with the number of cores, and short work is not shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def suited_threads(width: int) -> AbstractContextManager[None]:
    """Torch's own threads for a model as wide as `width`, or one, where an operation is over before they have met."""
    return nullcontext() if width >= WIDE else one_thread()


def in_threads(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """The function's results for all pieces in order, a core each.

    Torch's own threads meet after every operation; on a busy machine they mostly wait for each other.
    """
    with one_thread(), ThreadPoolExecutor(available_threads()) as pool:
        return list(pool.map(function, pieces))
