"""Graphs as ONNX Runtime has optimised and packed them for this processor, kept in the bundle's `caches/`.

Turning blocked weights into the layout that a processor multiplies fast takes most of a minute at the released size, and as
much memory again. What comes of it is written down once; later loads map it, and processes share it.
"""

import ctypes
import hashlib
import mmap
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.runtime.bundle import CACHE_SUFFIX, CACHES_FOLDER
from pplex.runtime.precision import PRECISIONS

GROWTH = 2.5  # times the weights' bytes: they are kept as they were, and packed with their scales as float32


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
        except OSError:  # a bundle that is read only, or a disk that is full: it is prepared anew at each load
            return False
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def give_back(self) -> None:
        """Let go of the memory of what loading has read of the weights and no step will: scales, which were packed too.

        Pages that are needed are mapped again when they are. Where the system does not tell what is mapped, they stay.
        """
        try:
            mapped = Path("/proc/self/smaps").read_text()
        except OSError:
            return
        advise = ctypes.CDLL(None).madvise
        for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", mapped, flags=re.MULTILINE):
            # A page that was written to would be lost: none is, but then it is not for us to drop.
            if self.weights.name in entry and re.search(r"^Anonymous: +0 kB$", entry, re.MULTILINE):
                start, end = (int(address, 16) for address in entry.split(maxsplit=1)[0].split("-"))
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    def remove(self) -> None:
        """Forget what turned out to be damaged."""
        self.model.unlink(missing_ok=True)
        self.weights.unlink(missing_ok=True)


def prepared_graphs(folder: Path, manifest: Mapping[str, Any], version: str) -> dict[str, PreparedGraph]:
    """Where a bundle's graphs with blocked weights are kept, or can be, as ONNX Runtime `version` prepares them here."""
    files, result = manifest["files"], {}
    processor = _processor()
    for graph, precision in manifest["precision"].items():
        names = graph_files(graph)
        if PRECISIONS[precision].block and all(name in files for name in names):
            identity = "\n".join([version, processor, *(files[name]["sha256"] for name in names)])
            key = hashlib.sha256(identity.encode()).hexdigest()[:16]
            nbytes = sum(files[name]["nbytes"] for name in names)
            result[graph] = PreparedGraph(folder / CACHES_FOLDER, graph, key, nbytes)
    return result


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
