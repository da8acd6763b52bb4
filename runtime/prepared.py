"""The graphs as ONNX Runtime optimises them for this processor, cached in the bundle's `caches/`.

ONNX Runtime converts block-quantized weights (int8, int4) into the layout of its own operators. At the released size this
takes half a minute and doubles the memory. So the optimised graph is cached, and later loads use it. If our kernel is used
(`runtime.kernel_choice`), the cached graph has its operators, and a third file with the packed weights.

Called by `runtime.backend`.
"""

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.runtime.bundle import CACHE_SUFFIX, CACHES_FOLDER, file_sha256, processor_file
from pplex.runtime.errors import BundleError
from pplex.runtime.files import is_file
from pplex.runtime.precision import BUILT

GROWTH = 1.5  # largest size of a cache relative to the weights: their scales become float32
PACKED_GROWTH = 3.0  # the same while weights are packed for our kernel: ONNX Runtime's form is beside the packed one
FORMAT = "1"  # of the cache; change it when the options change that make or load a cache
LEFT_SECONDS = 3600.0  # an unfinished folder this old was abandoned


@dataclass(frozen=True)
class PreparedGraph:
    """The place of one optimised graph, for one processor, library version and content.

    `sources`: the graph's files in the bundle with their SHA-256; `nbytes`: their total size. `for_kernel`: weights are
    packed for our kernels.
    """

    folder: Path
    graph: str
    processor: str
    key: str
    sources: Mapping[Path, str]
    nbytes: int
    for_kernel: bool = False

    @property
    def model(self) -> Path:
        return self._file("onnx")

    @property
    def weights(self) -> Path:
        return self._file("data")

    @property
    def packed(self) -> Path | None:
        """The weights as our kernels read them, in a file of their own; None without the kernel."""
        return self._file("packed") if self.for_kernel else None

    @property
    def files(self) -> list[Path]:
        """All files of the cache. The model gets its name last."""
        return [path for path in (self.packed, self.weights, self.model) if path]

    @property
    def is_there(self) -> bool:
        """Whether it is cached. The cache is complete when all files exist, because the model gets its name last."""
        return all(os.path.isfile(path) for path in self.files)  # an unreadable file is made again

    def make(self, write: Callable[[Path], None]) -> bool:
        """Make it with `write(folder)`, which writes `files` there. Returns False, and leaves no files, if writing fails.

        It removes this processor's caches for other versions of ONNX Runtime or other contents of the graph. If two
        processes write at the same time, the last cache stays.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._remove_left_overs()
            growth = PACKED_GROWTH if self.for_kernel else GROWTH
            if shutil.disk_usage(self.folder).free < growth * self.nbytes:
                return False
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=f"{self.graph}.", suffix=".part") as scratch:
                write(Path(scratch))
                for path in self.files:
                    with (Path(scratch) / path.name).open("rb") as file:
                        os.fsync(file.fileno())
                for old in self.folder.glob(f"{self.graph}.cpu_{self.processor}_*{CACHE_SUFFIX}"):
                    old.unlink(missing_ok=True)
                for path in self.files:
                    (Path(scratch) / path.name).replace(path)
        except (OSError, BundleError):  # read-only or full disk: each load prepares the graph again
            return False
        return True

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.graph}.cpu_{self.processor}_{self.key}.{kind}{CACHE_SUFFIX}"

    def _remove_left_overs(self) -> None:
        """Remove folders of processes that were killed while they wrote."""
        for scratch in self.folder.glob("*.part"):
            if time.time() - scratch.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)

    def discard(self) -> None:
        """Remove a damaged cache. Raises BundleError if its sources are damaged too."""
        for path in self.files:
            with suppress(OSError):
                path.unlink()
        changed = [path.name for path, sha256 in self.sources.items() if file_sha256(path) != sha256]
        if changed:
            raise BundleError(
                f"{self.folder.parent} is damaged: {', '.join(changed)} does not have the SHA-256 of the manifest. "
                "Copy it again, or rebuild it: pplex-export build"
            )


def prepared_graphs(
    folder: Path, manifest: Mapping[str, Any], version: str, layout: str | None = None
) -> dict[str, PreparedGraph]:
    """The caches of a bundle's graphs with block-quantized weights, for ONNX Runtime `version` on this processor.

    `layout`: of our kernel's packed weights, None without the kernel. A cache is not used if the graph's file has changed
    since, even if the manifest is the same.
    """
    processor = _digest(_processor())[:8]

    def prepared(graph: str) -> PreparedGraph | None:
        sources = {
            folder / name: manifest["files"][name]["sha256"]
            for name in graph_files(graph)
            if name in manifest["files"] and is_file(folder / name)
        }
        if folder / f"{graph}.data" not in sources:  # the weights are inside the graph's file
            return None
        stats = [path.stat() for path in sources]
        form = FORMAT if layout is None else f"{FORMAT}, packed {layout}"
        key = _digest(form, version, *sources.values(), *(str(stat.st_mtime_ns) for stat in stats))[:16]
        nbytes = sum(stat.st_size for stat in stats)
        return PreparedGraph(folder / CACHES_FOLDER, graph, processor, key, sources, nbytes, layout is not None)

    precisions = {graph: BUILT.get(name) for graph, name in manifest["precision"].items()}
    in_blocks = {graph: precision for graph, precision in precisions.items() if precision and precision.block}
    return {graph: found for graph in in_blocks if (found := prepared(graph))}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def graph_files(graph: str) -> tuple[str, str, str]:
    """The names that a graph's files may have: the graph, its form for processors, and the weights of both."""
    return f"{graph}.onnx", processor_file(graph), f"{graph}.data"


def _processor() -> str:
    """The kind of processor and its instructions. The packing of weights depends on both."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    return f"{platform.machine()} {features or platform.processor()}"
