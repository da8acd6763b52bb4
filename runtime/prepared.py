"""The graphs as ONNX Runtime optimises them for this processor, cached in the bundle's `caches/`.

ONNX Runtime converts block-quantized weights (int8, int4) into the layout of its own operators. At the released size this
takes half a minute and doubles the memory. So the optimised graph is cached, and later loads use it.

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

from pplex.runtime.bundle import CACHE_SUFFIX, CACHES_FOLDER, file_sha256
from pplex.runtime.errors import BundleError
from pplex.runtime.files import is_file
from pplex.runtime.precision import PRECISIONS

GROWTH = 1.5  # largest size of a cache relative to the weights: their scales become float32
FORMAT = "1"  # of the cache; change it when the options change that make or load a cache
LEFT_SECONDS = 3600.0  # an unfinished folder this old was abandoned


@dataclass(frozen=True)
class PreparedGraph:
    """The place of one optimised graph, for one processor, library version and content.

    `sources`: the graph's files in the bundle with their SHA-256; `nbytes`: their total size.
    """

    folder: Path
    graph: str
    processor: str
    key: str
    sources: Mapping[Path, str]
    nbytes: int

    @property
    def model(self) -> Path:
        return self.folder / f"{self.graph}.cpu_{self.processor}_{self.key}.onnx{CACHE_SUFFIX}"

    @property
    def weights(self) -> Path:
        return self.folder / f"{self.graph}.cpu_{self.processor}_{self.key}.data{CACHE_SUFFIX}"

    @property
    def is_there(self) -> bool:
        """Whether it is cached. The model is complete when both files exist, because it gets its name last."""
        return os.path.isfile(self.model) and os.path.isfile(self.weights)  # an unreadable file is made again

    def make(self, write: Callable[[Path, str], None]) -> bool:
        """Make it with `write(model, name of the weights' file)`. Returns False, and leaves no files, if writing fails.

        It removes this processor's caches for other versions of ONNX Runtime or other contents of the graph. If two
        processes write at the same time, the last cache stays.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._remove_left_overs()
            if shutil.disk_usage(self.folder).free < GROWTH * self.nbytes:
                return False
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=f"{self.graph}.", suffix=".part") as scratch:
                model, weights = Path(scratch) / self.model.name, Path(scratch) / self.weights.name
                write(model, weights.name)
                for path in (weights, model):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                for old in self.folder.glob(f"{self.graph}.cpu_{self.processor}_*{CACHE_SUFFIX}"):
                    old.unlink(missing_ok=True)
                weights.replace(self.weights)
                model.replace(self.model)
        except (OSError, BundleError):  # read-only or full disk: each load prepares the graph again
            return False
        return True

    def _remove_left_overs(self) -> None:
        """Remove folders of processes that were killed while they wrote."""
        for scratch in self.folder.glob("*.part"):
            if time.time() - scratch.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)

    def discard(self) -> None:
        """Remove a damaged cache. Raises BundleError if its sources are damaged too."""
        for path in (self.model, self.weights):
            with suppress(OSError):
                path.unlink()
        changed = [path.name for path, sha256 in self.sources.items() if file_sha256(path) != sha256]
        if changed:
            raise BundleError(
                f"{self.folder.parent} is damaged: {', '.join(changed)} does not have the SHA-256 of the manifest. "
                "Copy it again, or rebuild it: pplex-export build"
            )


def prepared_graphs(folder: Path, manifest: Mapping[str, Any], version: str) -> dict[str, PreparedGraph]:
    """The caches of a bundle's graphs with block-quantized weights, for ONNX Runtime `version` on this processor.

    A cache is not used if the graph's file has changed since, even if the manifest is the same.
    """
    processor = _digest(_processor())[:8]

    def prepared(graph: str) -> PreparedGraph | None:
        sources = {
            folder / name: manifest["files"][name]["sha256"]
            for name in graph_files(graph)
            if name in manifest["files"] and is_file(folder / name)
        }
        if len(sources) < 2:  # the weights are inside the graph's file
            return None
        stats = [path.stat() for path in sources]
        key = _digest(FORMAT, version, *sources.values(), *(str(stat.st_mtime_ns) for stat in stats))[:16]
        nbytes = sum(stat.st_size for stat in stats)
        return PreparedGraph(folder / CACHES_FOLDER, graph, processor, key, sources, nbytes)

    precisions = {graph: PRECISIONS.get(name) for graph, name in manifest["precision"].items()}
    in_blocks = [graph for graph, precision in precisions.items() if precision and precision.block]
    return {graph: found for graph in in_blocks if (found := prepared(graph))}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def graph_files(graph: str) -> tuple[str, str]:
    """The names of a graph's file and of its weights' file."""
    return f"{graph}.onnx", f"{graph}.data"


def _processor() -> str:
    """The kind of processor and its instructions. The packing of weights depends on both."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    return f"{platform.machine()} {features or platform.processor()}"
