"""Random tensors that depend only on seed and name, and a writer of safetensors in pieces: called by `export.synth*`."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplex.export.tensor_tables import Shapes
from pplex.runtime.arrays import Array
from pplex.runtime.cgroup import available_processors

Progress = Callable[[int], None]


def generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of one tensor, or of a piece: the order in which tensors are drawn does not matter."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def normal(seed: int, name: str, count: int, mean: float, std: float) -> Tensor:
    """`count` float32 numbers."""
    numbers = generator(seed, name).standard_normal(count, dtype=np.float32)
    numbers *= np.float32(std)
    if mean:
        numbers += np.float32(mean)
    return torch.from_numpy(numbers)


def write_tensors(path: Path, dtype: str, shapes: Shapes, pieces: Iterable[Array], progress: Progress) -> None:
    """Write a safetensors file of the tensors in `shapes`. `pieces` is their data in this order, in any lengths."""
    header = _header(dtype, shapes)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            file.write(piece.data)
            progress(piece.nbytes)


def _header(dtype: str, shapes: Shapes) -> bytes:
    """The JSON table at the start of the file, padded to align the data to 8 bytes."""
    table, end, itemsize = {}, 0, {"BF16": 2, "F32": 4}[dtype]
    for key, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def ahead(jobs: Iterable[Callable[[], Array]]) -> Iterator[Array]:
    """The results of the jobs in order. One thread for each core works a few jobs ahead."""
    threads = available_processors()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Array]] = deque()
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
