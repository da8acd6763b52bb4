"""Limits torch's threads, or runs one piece of work on each core: called by `export` and `validate`."""

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
    """Torch on one thread. The last bits of a sum then do not depend on the number of cores, and short work is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def suited_threads(width: int) -> AbstractContextManager[None]:
    """All of torch's threads for a wide model, one for a narrow model, whose operations are shorter than the waiting."""
    return nullcontext() if width >= WIDE else one_thread()


def in_threads(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """The function's results for all pieces, in order. Each piece runs on one core.

    Torch's own threads synchronize after every operation; on a busy machine they mostly wait for each other.
    """
    with one_thread(), ThreadPoolExecutor(available_threads()) as pool:
        return list(pool.map(function, pieces))
