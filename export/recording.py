"""Records statistics of the inputs of a module's matrices while it runs: called by `export.calibration`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import TypeVar

import torch
from torch import Tensor, nn

from pplex.export.layers import Linear
from pplex.export.moments import directions
from pplex.export.threads import in_threads

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Record:
    """Sums over the inputs of each Linear, the inputs' common directions, and the largest values in rings."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.mean_square: dict[str, Tensor] = {}
        self.directions: dict[str, Tensor] = {}
        self.rings: dict[str, Tensor] = {}
        self._seen: dict[str, dict[int, list[Seen]]] = {}
        self._piece = local()

    def each(self, function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
        """The function's results for all pieces, each on one core. What it records counts in the order of the pieces."""

        def numbered(item: tuple[int, Piece]) -> Result:
            self._piece.number = item[0]
            with torch.inference_mode():
                return function(item[1])

        return in_threads(numbered, enumerate(pieces))

    @contextmanager
    def watching(self, module: nn.Module, prefix: str, every: int = 1) -> Iterator[None]:
        """Record the inputs of all parts. Directions are found at the end, from one row of `every`."""
        hooks = [
            part.register_forward_pre_hook(lambda _, x, name=f"{prefix}{name}.weight": self.add(name, x[0], every))
            for name, part in module.named_modules()
            if isinstance(part, Linear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.sum_up()

    def add(self, name: str, x: Tensor, every: int = 1) -> None:
        rows = x.flatten(0, -2).float()  # [n, K]
        seen = Seen(float(rows.abs().max()), rows.square().sum(0), len(rows), rows[::every].bfloat16())
        self._seen.setdefault(name, {}).setdefault(self._piece.number, []).append(seen)

    def add_rings(self, name: str, ring_k: Tensor, ring_v: Tensor) -> None:
        """The rings [1, H, C, D] of the attention `name` after the last step.

        At another position, RoPE turns a pair of a key's channels by another angle, up to its length in one channel.
        """
        length = ring_k[0].unflatten(-1, (-1, 2)).norm(dim=-1).repeat_interleave(2, -1)  # [H, C, D]
        for kv, values in (("k", length), ("v", ring_v[0].abs())):
            key, found = f"{name}.{kv}", values.amax(1)  # [H, D]
            self.rings[key] = torch.maximum(self.rings[key], found) if key in self.rings else found

    def sum_up(self) -> None:
        """Compute the statistics of all that was added since the last call."""

        def of(name: str) -> tuple[float, Tensor, Tensor]:
            seen = [part for _, parts in sorted(self._seen[name].items()) for part in parts]
            square = torch.stack([part.total for part in seen]).sum(0) / sum(part.count for part in seen)
            size = square.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            found = directions(torch.cat([part.rows for part in seen]).float()) / size[:, None]
            return max(part.largest for part in seen), square, found.half()

        for name, result in zip(self._seen, in_threads(of, self._seen), strict=True):
            self.largest[name], self.mean_square[name], self.directions[name] = result
        self._seen.clear()


@dataclass(frozen=True)
class Seen:
    """Inputs [n, K] of a Linear: their largest number, sums of squares [K], n, and some of the rows.

    The rows have 16 bits, because those of all depth steps are in memory at once.
    """

    largest: float
    total: Tensor
    count: int
    rows: Tensor
