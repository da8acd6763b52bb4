"""Graphs as ONNX Runtime has optimised them for this processor, kept in the bundle's `caches/`.

Turning the blocked weights of the standard graph into those of its own operators takes ONNX Runtime half a minute at the
released size, and as much memory again. What comes of it is written down once, and later loads begin there.
"""

import hashlib
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.runtime.bundle import CACHE_SUFFIX, CACHES_FOLDER
from pplex.runtime.errors import BundleError
from pplex.runtime.precision import PRECISIONS

GROWTH = 1.5  # times the weights' bytes, at most: their scales are kept as float32


@dataclass(frozen=True)
class PreparedGraph:
    """Where one graph is kept for one processor, library version and content; `nbytes` of weights go into it."""

    folder: Path
    graph: str
    key: str
    nbytes: int

    @property
    def model(self) -> Path:
        return self.folder / f"{self.graph}.cpu_{self.key}.onnx{CACHE_SUFFIX}"

    @property
    def weights(self) -> Path:
        return self.folder / f"{self.graph}.cpu_{self.key}.data{CACHE_SUFFIX}"

    @property
    def is_there(self) -> bool:
        """Whether it is whole: the model gets its name last."""
        return self.model.is_file() and self.weights.is_file()

    def make(self, write: Callable[[Path, str], None]) -> bool:
        """Have `write(model, name of the weights' file)` write it; False, and nothing left, where there is no room for it.

        What was kept of the graph for other versions or contents is removed.
        """
        scratch = self.folder / f"{self.graph}.cpu.part"
        try:
            self.folder.mkdir(exist_ok=True)
            if shutil.disk_usage(self.folder).free < GROWTH * self.nbytes:
                return False
            # One name for all who make it: what a killed process left is removed, and of two at once the first gives up.
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            write(scratch / self.model.name, self.weights.name)
            for old in self.folder.glob(f"{self.graph}.cpu_*{CACHE_SUFFIX}"):
                old.unlink(missing_ok=True)
            (scratch / self.weights.name).replace(self.weights)
            (scratch / self.model.name).replace(self.model)
        except (OSError, BundleError):  # read only, or full, or another process began: it is prepared anew at each load
            return False
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def remove(self) -> None:
        """Forget what turned out to be damaged."""
        self.model.unlink(missing_ok=True)
        self.weights.unlink(missing_ok=True)


def prepared_graphs(folder: Path, manifest: Mapping[str, Any], version: str) -> dict[str, PreparedGraph]:
    """Where a bundle's graphs with blocked weights are kept, or can be, as ONNX Runtime `version` prepares them here.

    A file that was written to since is another file, whatever the manifest says: what was kept of it is not found again.
    """
    processor = _processor()

    def prepared(graph: str) -> PreparedGraph | None:
        found = [folder / name for name in graph_files(graph)]
        if not all(path.is_file() for path in found):
            return None
        stats = [path.stat() for path in found]
        sums = [manifest["files"][path.name]["sha256"] for path in found]
        times = [str(stat.st_mtime_ns) for stat in stats]
        key = hashlib.sha256("\n".join([version, processor, *sums, *times]).encode()).hexdigest()[:16]
        return PreparedGraph(folder / CACHES_FOLDER, graph, key, sum(stat.st_size for stat in stats))

    blocked = [graph for graph, precision in manifest["precision"].items() if PRECISIONS[precision].block]
    return {graph: found for graph in blocked if (found := prepared(graph))}


def graph_files(graph: str) -> tuple[str, str]:
    """The names of a graph's file and of its weights'."""
    return f"{graph}.onnx", f"{graph}.data"


def _processor() -> str:
    """What decides how weights are packed: the kind of processor and the instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}"
