"""Memory, processors and disk for the released model, a bundle and a build, with a stand-in for the kernel's files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kernel import V2, Kernel

from pplex.doctor import machine
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.sizes import model_sizes

GB = 10**9
WHOLE = V2.format(at="/", on="/sys/fs/cgroup")


@cache
def sizes(precision: str | None = None, compiled: bool = False) -> dict[str, dict[str, int]]:
    return model_sizes(None, precision, compiled)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Every disk has `free` bytes left."""
    room = {"free": 100 * GB}
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=room["free"]))
    yield room


def worst(findings: Iterator[Finding]) -> Finding:
    return max(findings, key=lambda finding: (OK, WARNING, PROBLEM).index(finding.level))


class TestMemory:
    @pytest.mark.parametrize(
        "free, level, stops",
        [(2 * GB, PROBLEM, ("run",)), (9 * GB, WARNING, ()), (30 * GB, OK, ())],
    )
    def test_released_model_needs_enough_memory(
        self, kernel: Kernel, free: int, level: str, stops: tuple[str, ...]
    ) -> None:
        kernel.memory(total=64 * GB, available=free)
        finding = worst(machine.check_memory(Question("run"), sizes(), None))
        assert (finding.level, finding.stops) == (level, stops)

    def test_a_container_limit_counts(self, kernel: Kernel) -> None:
        kernel.group("/", WHOLE)
        kernel.limits("sys/fs/cgroup", memory_max=str(4 * GB), memory_current=str(GB))
        first, *others = machine.check_memory(Question("run"), sizes(), None)
        assert first.fact == "3.0 GB free, within the control group's limit of 4.0 GB."
        assert worst(iter(others)).stops == ("run",)

    def test_memory_for_fewer_conversations_is_a_warning(self, kernel: Kernel) -> None:
        kernel.memory(total=64 * GB, available=12 * GB)
        finding = worst(machine.check_memory(Question("serve", slots=8), sizes(), None))
        assert (finding.level, finding.stops) == (WARNING, ()) and "--slots 3" in str(finding.advice)

    def test_engines_need_no_memory_of_the_processor(self, kernel: Kernel) -> None:
        kernel.memory(total=64 * GB, available=2 * GB)
        bundle = {"on_onnxruntime": [], "weights": 5 * GB, "session": GB}
        assert worst(machine.check_memory(Question("run"), sizes(), bundle)).level == OK

    @pytest.mark.parametrize(
        "gpu, free, level, words",
        [
            (None, 2 * GB, PROBLEM, "needs about 4.4 GB"), (None, 8 * GB, WARNING, "skipped here"), (None, 40 * GB, OK, ""),
            ("rtx-4090", 8 * GB, PROBLEM, "with engines needs about 16.2 GB"), ("rtx-4090", 20 * GB, OK, ""),
        ],
    )  # fmt: skip
    def test_a_build_needs_enough_memory(
        self, kernel: Kernel, gpu: str | None, free: int, level: str, words: str
    ) -> None:
        kernel.memory(total=64 * GB, available=free)
        finding = worst(machine.check_memory(Question("build", gpu=gpu), sizes(compiled=gpu is not None), None))
        assert finding.level == level and words in finding.fact
        assert finding.stops == (("build",) if level == PROBLEM else ())

    def test_unknown_memory_is_a_warning(self, kernel: Kernel) -> None:
        kernel.write("proc/meminfo", "")
        (finding,) = machine.check_memory(Question(), sizes(), None)
        assert (finding.level, finding.stops) == (WARNING, ())


class TestProcessors:
    def test_a_quota_is_reported(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
        kernel.group("/", WHOLE)
        kernel.limits("sys/fs/cgroup", cpu_max="150000 100000")
        (finding,) = machine.check_processors(Question())
        assert finding.level == WARNING and "allows 1.5 of 8 processors: 1 thread a step." in finding.fact

    def test_without_a_quota_all_processors_count(self, kernel: Kernel) -> None:
        (finding,) = machine.check_processors(Question())
        assert finding.level == OK and finding.details["quota"] is None


class TestDisk:
    def check(self, cache: Path | None = None, bundle: dict[str, Any] | None = None, **asked: Any) -> Finding:
        question = Question("run" if bundle else "build", **asked)
        return worst(machine.check_disk(question, sizes(question.precision), bundle, cache))

    @pytest.mark.parametrize(
        "free, level, advice",
        [(100 * GB, OK, "None"), (12 * GB, WARNING, "--precision fp8, int8, int4"), (GB, PROBLEM, "on another disk")],
    )
    def test_a_build_needs_enough_space(
        self, tmp_path: Path, disk: dict[str, int], free: int, level: str, advice: str
    ) -> None:
        disk["free"] = free
        finding = self.check(out=tmp_path / "not/yet/there")
        assert finding.level == level and advice in str(finding.advice) and str(tmp_path) in finding.fact

    def test_a_checkpoint_on_the_same_disk_is_added(self, tmp_path: Path, disk: dict[str, int]) -> None:
        disk["free"] = 20 * GB
        assert self.check(out=tmp_path, precision="int4").level == OK
        finding = self.check(out=tmp_path, precision="int4", cache=tmp_path)
        assert (finding.level, finding.stops) == (PROBLEM, ("build",)) and "17.1 GB for the checkpoint" in finding.fact

    def test_cache_of_the_first_load_needs_space(self, tmp_path: Path, disk: dict[str, int]) -> None:
        disk["free"] = GB
        for to_cache, writable, level in ((2 * GB, True, WARNING), (GB // 2, True, OK), (GB // 2, False, WARNING)):
            bundle = {"to_cache": to_cache, "writable": writable}
            finding = self.check(source=str(tmp_path), bundle=bundle)
            assert (finding.level, finding.stops) == (level, ())

    def test_a_missing_temporary_folder_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none() -> None:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(tempfile, "TemporaryFile", none)
        finding = worst(machine.check_disk(Question("build"), {}, None, None))
        assert finding.level == PROBLEM and "TMPDIR" in str(finding.advice)
