"""Processors and memory in control groups of both versions, with a stand-in for the kernel's files and the real kernel."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kernel import V1, V2, Kernel

from pplex.runtime import cgroup
from pplex.runtime.ort import _options, available_threads
from pplex.validate.memory import lacking_memory

GB = 1 << 30
WHOLE = V2.format(at="/", on="/sys/fs/cgroup")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    return Kernel(tmp_path, monkeypatch)


def cpu_v1(at: str) -> str:
    return V1.format(at=at, on="/sys/fs/cgroup/cpu,cpuacct", controller="cpu,cpuacct")


def memory_v1(at: str) -> str:
    return V1.format(at=at, on="/sys/fs/cgroup/memory", controller="memory")


class TestProcessors:
    def test_without_groups_the_affinity_counts(self, kernel: Kernel) -> None:
        assert (available_threads(), cgroup.quota_processors()) == (16, None)

    @pytest.mark.parametrize(
        "quota, threads", [("200000 100000", 2), ("150000 100000", 1), ("20000 100000", 1), ("max 100000", 16)]
    )
    def test_a_quota_of_version_2(self, kernel: Kernel, quota: str, threads: int) -> None:
        kernel.group("/", WHOLE)
        kernel.limits("sys/fs/cgroup", cpu_max=quota)
        assert available_threads() == threads

    def test_engine_gets_as_many_threads(self, kernel: Kernel) -> None:
        kernel.group("/", WHOLE)
        kernel.limits("sys/fs/cgroup", cpu_max="300000 100000")
        assert _options("fp32", threads=None).intra_op_num_threads == 3

    @pytest.mark.parametrize("quota, threads", [("400000", 4), ("-1", 16)])
    def test_a_quota_of_version_1(self, kernel: Kernel, quota: str, threads: int) -> None:
        kernel.group("/", cpu_v1("/"))
        kernel.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota)
        kernel.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
        assert available_threads() == threads

    @pytest.mark.parametrize("limited", ["", "/kubepods", "/kubepods/pod1", "/kubepods/pod1/c1"])
    def test_a_group_above_limits_those_below(self, kernel: Kernel, limited: str) -> None:
        kernel.group("/kubepods/pod1/c1", WHOLE)
        for group in ("", "/kubepods", "/kubepods/pod1", "/kubepods/pod1/c1"):
            kernel.limits(f"sys/fs/cgroup{group}", cpu_max="200000 100000" if group == limited else "500000 100000")
        assert available_threads() == 2

    def test_a_container_sees_its_group_at_the_mount(self, kernel: Kernel) -> None:
        kernel.group("/docker/abc", cpu_v1("/docker/abc"))  # the path on the host; the container sees its end
        kernel.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000")
        kernel.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
        assert available_threads() == 2

    def test_a_group_outside_the_namespace_is_read_at_the_mount(self, kernel: Kernel) -> None:
        kernel.group("/../../other", WHOLE)
        kernel.limits("sys/fs/cgroup", cpu_max="300000 100000")
        assert available_threads() == 3

    def test_both_versions_at_once(self, kernel: Kernel) -> None:
        kernel.group("/job", cpu_v1("/"), V2.format(at="/", on="/sys/fs/cgroup/unified"))
        kernel.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "500000")
        kernel.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000")
        assert available_threads() == 5

    def test_a_smaller_affinity_counts(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
        kernel.group("/", WHOLE)
        kernel.limits("sys/fs/cgroup", cpu_max="800000 100000")
        assert available_threads() == 1

    def test_malformed_files_are_ignored(self, kernel: Kernel) -> None:
        kernel.group("/", WHOLE, "broken", "1 2 3 4 5 - cgroup2")
        kernel.limits("sys/fs/cgroup", cpu_max="", memory_max="many", memory_stat="inactive_file")
        assert (available_threads(), cgroup.memory_limit_nbytes()) == (16, None)
        assert cgroup.available_memory() == 48 * GB


class TestMemory:
    def test_without_groups_the_machine_memory_counts(self, kernel: Kernel) -> None:
        assert (cgroup.available_memory(), cgroup.memory_limit_nbytes()) == (48 * GB, None)

    def test_version_2_counts_pages_of_files_as_free(self, kernel: Kernel) -> None:
        kernel.group("/", WHOLE)
        stat = f"anon {2 * GB}\ninactive_file {GB}\nactive_file {GB}"
        kernel.limits("sys/fs/cgroup", memory_max=str(8 * GB), memory_current=str(4 * GB), memory_stat=stat)
        assert (cgroup.available_memory(), cgroup.memory_limit_nbytes()) == (6 * GB, 8 * GB)

    def test_limits_of_version_1_are_read(self, kernel: Kernel) -> None:
        kernel.group("/job", memory_v1("/"))
        kernel.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
        kernel.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", str(8 * GB))
        kernel.write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", str(3 * GB))
        kernel.write("sys/fs/cgroup/memory/job/memory.stat", f"inactive_file 5\ntotal_inactive_file {GB}")
        assert (cgroup.available_memory(), cgroup.memory_limit_nbytes()) == (6 * GB, 8 * GB)

    def test_fullest_group_up_the_tree_counts(self, kernel: Kernel) -> None:
        kernel.group("/a/b", WHOLE)
        kernel.limits("sys/fs/cgroup/a", memory_max=str(10 * GB), memory_current=str(9 * GB))
        kernel.limits("sys/fs/cgroup/a/b", memory_high=str(4 * GB), memory_current=str(GB))
        assert (cgroup.available_memory(), cgroup.memory_limit_nbytes()) == (GB, 4 * GB)

    def test_a_container_limit_counts_as_lacking_memory(self, kernel: Kernel) -> None:
        kernel.group("/", WHOLE)
        kernel.limits("sys/fs/cgroup", memory_max=str(8 * GB), memory_current="0")
        assert lacking_memory(4 * GB) is None
        assert lacking_memory(16 * GB) == "that needs about 17.2 GB of memory, and 8.6 GB are free here"


JOINED = """
import os, resource, sys
from pathlib import Path
from pplex.runtime.cgroup import available_memory, available_processors
folder, nbytes, asked = sys.argv[1:]
if folder:
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
if nbytes:
    resource.setrlimit(resource.RLIMIT_AS, (int(nbytes), int(nbytes)))
print({"memory": available_memory, "processors": available_processors}[asked]())
"""


def answer(asked: str, folder: Path | str = "", nbytes: int | str = "") -> int:
    """The memory or processors of a new process, after it joins the group `folder` or sets `ulimit -v`."""
    command = [sys.executable, "-c", JOINED, str(folder), str(nbytes), asked]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.fixture
def own_group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new group of a controller, in the cgroup version of this machine."""
    parents = (Path("/sys/fs/cgroup", request.param), Path("/sys/fs/cgroup"))
    parent = next((parent for parent in parents if (parent / "cgroup.procs").is_file()), None)
    folder = (parent or Path("/nowhere")) / f"pplex-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be made here ({error}): it takes root and a cgroup file system")
    yield folder
    with suppress(OSError):
        folder.rmdir()


def write_first(folder: Path, texts: dict[str, str]) -> None:
    """Write the first of these files that exists in the group."""
    name = next((name for name in texts if (folder / name).is_file()), None)
    if name is None:
        pytest.skip(f"the control group {folder} lacks the controller: it has none of {', '.join(texts)}")
    (folder / name).write_text(texts[name])


@pytest.mark.parametrize("own_group", ["cpu"], indirect=True)
def test_quota_of_a_real_kernel_is_read(own_group: Path) -> None:
    write_first(own_group, {"cpu.max": "100000 100000", "cpu.cfs_quota_us": "100000"})
    assert answer("processors", own_group) == 1


@pytest.mark.parametrize("own_group", ["memory"], indirect=True)
def test_memory_limit_of_a_real_kernel_is_read(own_group: Path) -> None:
    write_first(own_group, dict.fromkeys(("memory.max", "memory.limit_in_bytes"), str(GB)))
    assert GB // 2 < answer("memory", own_group) < GB


def test_ulimit_v_limits_memory() -> None:
    assert 0 < answer("memory", nbytes=2 * GB) < 2 * GB
