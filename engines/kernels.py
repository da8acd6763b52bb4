"""Reads the kernels of a TensorRT-RTX engine from its file, without a GPU: called by `engines.compile`.

The file holds the library's own description of the program that it made, as text: a line for each kernel, with its grid and
the layers that it computes. (Seen in 1.7. The format is not documented, and TensorRT writes none.)
"""

import mmap
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

_MARK = b"={ name="  # of a line such as `function={ name=_gemv_mha_v1 ... grid = { 256 1 1 } ... layers="..." }`
_KINDS = (b"function", b"runtime_fusion")
_GRID = re.compile(r"grid = \{ (\d+) (\d+) (\d+) \}")
_LAYERS = re.compile(r'layers="([^"]*)"')
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*?)(?: \[profile \d+\])?\]")


@dataclass(frozen=True)
class Kernel:
    """One kernel: the library's name for it, the ONNX nodes that it computes, and its blocks at the profile's optimum."""

    name: str
    nodes: tuple[str, ...]
    grid: tuple[int, int, int] | None  # None: chosen when the engine is loaded


def kernels(engine: Path) -> list[Kernel]:
    """The kernels of all profiles in the order of the file; none for an engine without a description."""
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [_kernel(line) for line in _lines(data)]


def computing_only(found: Iterable[Kernel], nodes: Set[str]) -> set[str]:
    """Those of the `nodes` that a kernel computes alone, or together with others of them, and so writes to memory."""
    return {node for kernel in found if kernel.nodes and set(kernel.nodes) <= nodes for node in kernel.nodes}


def _lines(data: mmap.mmap) -> Iterator[str]:
    """The text of each kernel after its mark. An engine has gigabytes of weights: `find` is much faster than a pattern."""
    at = data.find(_MARK)
    while at >= 0:
        end = data.find(b"\n", at)
        if data[max(0, at - 16) : at].endswith(_KINDS):
            yield data[at + len(_MARK) : end].decode(errors="replace")
        at = data.find(_MARK, end if end > at else at + 1)


def _kernel(line: str) -> Kernel:
    grid, layers = _GRID.search(line), _LAYERS.search(line)
    nodes = tuple(_LAYER.findall(layers[1])) if layers else ()
    return Kernel(line.partition(" ")[0], nodes, (int(grid[1]), int(grid[2]), int(grid[3])) if grid else None)
