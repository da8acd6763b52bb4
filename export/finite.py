"""Finds numbers that are NaN or infinite in a checkpoint's files: called by `export.build` before the long work."""

from collections.abc import Callable, Iterable, Iterator
from math import prod

import torch

from pplex.export.tensors import Source, Stored
from pplex.runtime.errors import CheckpointError

CHUNK_NBYTES = 1 << 26  # read at once
SHOWN = 20  # tensors in a message


def stored_tensors(sources: Iterable[Source]) -> list[Stored]:
    """The tensors in files that `sources` are made of, each once, in the order of the files."""
    found = {(tensor.path, tensor.key): tensor for source in sources for tensor in source.stored()}
    return [found[place] for place in sorted(found)]


def check_finite(sources: Iterable[Source], progress: Callable[[int], None]) -> None:
    """Raise CheckpointError that names every tensor with a NaN or infinite number; `progress` gets the bytes read.

    It reads what is stored, not what is computed from it.
    """
    problems = []
    for tensor in stored_tensors(sources):
        wrong = sum(_wrong(tensor, start, stop) for start, stop in _chunks(tensor))
        if wrong:
            problems.append(f"{tensor.path.name}: {tensor.key} has {wrong} of {prod(tensor.shape)} numbers")
        progress(tensor.nbytes)
    if problems:
        more = [f"and {len(problems) - SHOWN} more tensors"] if len(problems) > SHOWN else []
        raise CheckpointError(
            "The checkpoint holds numbers that are NaN or infinite, so the model cannot work:\n  "
            + "\n  ".join([*problems[:SHOWN], *more])
            + "\nDownload or copy it again; if it is a fine-tune, its training diverged: use an earlier step."
        )


def _chunks(tensor: Stored) -> Iterator[tuple[int, int]]:
    count = tensor.shape[0]
    rows = max(1, CHUNK_NBYTES * count // max(tensor.nbytes, 1))
    return ((start, min(start + rows, count)) for start in range(0, count, rows))


def _wrong(tensor: Stored, start: int, stop: int) -> int:
    """How many numbers are not finite."""
    numbers = tensor.rows(start, stop)
    if not numbers.is_floating_point():
        return 0
    # The extremes of all numbers are 50 times as fast as a test of each; NaN is both.
    if bool(torch.isfinite(torch.stack(torch.aminmax(numbers))).all()):
        return 0
    return int((~torch.isfinite(numbers)).sum())
