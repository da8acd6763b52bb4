"""Cached optimised graphs: the same conversation, nothing read twice, and never from other files.

The tiny model caches its temporal graph, which has its own weights file; the depth graph is too small for one. These tests
use ONNX Runtime's own operators, so that a graph with a cache and one without give the same tokens; our kernel's caches are
tested in test_kernel_graph.py.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import TINY

from pplex.export.build import BuildOptions, build
from pplex.export.source import CheckpointSource
from pplex.runtime import prepared
from pplex.runtime.backend import open_to_run, prepared_here
from pplex.runtime.bundle import Bundle, is_bundle, open_bundle
from pplex.runtime.errors import BundleError
from pplex.runtime.kernel_choice import OFF, VARIABLE
from pplex.runtime.precision import parse_precision
from pplex.runtime.prepared import PreparedGraph
from pplex.runtime.session import Runtime

CODES = np.random.default_rng(0).integers(0, 2048, (20, 8))
Damage = Callable[[PreparedGraph], None]


@pytest.fixture(autouse=True)
def without_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, OFF)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 4 bits, never loaded."""
    options = BuildOptions(precision=parse_precision("int4"), calibration=None)
    return build(CheckpointSource(TINY / "checkpoint", None, None), tmp_path_factory.mktemp("int4") / "bundle", options)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def kept(folder: Path) -> dict[str, PreparedGraph]:
    return prepared_here(folder, open_bundle(folder, verify=False).manifest)


def conversation(folder: Path, **options: Any) -> list[list[int]]:
    with Runtime.load(folder, slots=1, threads=1, **options).open("NATF0", "Hello", seed=1) as session:
        return [session.step_codes(codes).tolist() for codes in CODES]


def unread(folder: Path) -> set[str]:
    """Change the bytes of bundle files but keep their times: a load must not read them."""
    result = set()
    for path in (path for path in folder.iterdir() if path.suffix in (".onnx", ".data")):
        before, stat = path.read_bytes(), path.stat()
        path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        try:
            open_to_run(folder, "cpu")
            result.add(path.name)
        except BundleError:
            pass
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return result


def test_the_first_load_caches_the_graph_and_later_ones_map_it(folder: Path) -> None:
    assert not any(graph.is_there for graph in kept(folder).values()) and unread(folder) == set()
    first = conversation(folder)
    assert kept(folder)["temporal"].is_there
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "caches").iterdir()}
    assert conversation(folder) == first
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "caches").iterdir()} == made
    assert unread(folder) == {"temporal.onnx", "temporal.data"}
    assert is_bundle(folder)


def test_cached_graphs_give_the_same_outputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = conversation(folder)
    monkeypatch.setattr(PreparedGraph, "make", lambda self, write: False)
    shutil.rmtree(folder / "caches")
    assert conversation(folder) == expected


def cut_short(graph: PreparedGraph) -> None:
    with graph.weights.open("r+b") as file:
        file.truncate(graph.weights.stat().st_size // 2)


def half_written(graph: PreparedGraph) -> None:
    graph.model.unlink()


def empty(graph: PreparedGraph) -> None:
    graph.weights.write_bytes(b"")


def no_model(graph: PreparedGraph) -> None:
    graph.model.write_bytes(b"no model")


@pytest.mark.parametrize("damage", [cut_short, half_written, empty, no_model])
def test_a_damaged_cache_is_rebuilt(folder: Path, damage: Damage) -> None:
    expected = conversation(folder)
    temporal = kept(folder)["temporal"]
    size = temporal.weights.stat().st_size
    damage(temporal)
    assert conversation(folder) == expected
    assert temporal.is_there and temporal.weights.stat().st_size == size


def test_changed_files_and_versions_are_prepared_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = conversation(folder)
    before = kept(folder)["temporal"]
    os.utime(folder / "temporal.data", ns=(time.time_ns(), time.time_ns()))
    assert not kept(folder)["temporal"].is_there
    assert conversation(folder) == expected
    assert kept(folder)["temporal"].is_there and not before.is_there
    assert len(list((folder / "caches").iterdir())) == 2, "outdated files are removed"
    monkeypatch.setattr(prepared, "_processor", lambda: "another")
    assert not kept(folder)["temporal"].is_there
    assert conversation(folder) == expected
    assert len(list((folder / "caches").iterdir())) == 4, "a folder that several machines share serves them all"


def test_a_read_only_bundle_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = conversation(folder)
    shutil.rmtree(folder / "caches")

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(13, "read only", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # permissions have no effect if the tests run as root
    assert conversation(folder) == expected
    assert not (folder / "caches").exists()


def test_nothing_is_cached_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    conversation(folder)
    assert list((folder / "caches").iterdir()) == []


def test_files_of_a_killed_process_are_removed(folder: Path) -> None:
    left, fresh = folder / "caches" / "temporal.old.part", folder / "caches" / "temporal.new.part"
    for scratch in (left, fresh):
        scratch.mkdir(parents=True)
        (scratch / "half").write_bytes(bytes(10))
    os.utime(left, (0, 0))
    assert is_bundle(folder)
    conversation(folder)
    assert not left.exists() and kept(folder)["temporal"].is_there
    assert fresh.exists(), "another process may be writing it"


def test_two_processes_can_prepare_at_the_same_time(folder: Path) -> None:
    expected, caches = conversation(folder), folder / "caches"
    shutil.rmtree(caches)
    writing = []

    def write(scratch: Path) -> None:
        """Another process starts and ends in the middle."""
        model = scratch / kept(folder)["temporal"].model.name
        model.write_bytes(b"half")
        writing.append(scratch)
        assert conversation(folder) == expected
        assert model.read_bytes() == b"half", "each has a place of its own"
        raise BundleError("and then the first one fails")

    assert not kept(folder)["temporal"].make(write)
    assert not writing[0].exists() and conversation(folder) == expected


def test_damage_of_cache_and_bundle_is_reported(folder: Path) -> None:
    """The cache is rebuilt from files that are hashed first: they may be damaged too."""
    conversation(folder)
    cut_short(kept(folder)["temporal"])
    path = folder / "temporal.data"
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(BundleError, match=r"temporal\.data does not have the SHA-256"):
        conversation(folder)


def test_other_precisions_are_not_cached(tiny_bundle: Bundle) -> None:
    assert prepared_here(tiny_bundle.folder, tiny_bundle.manifest) == {}
