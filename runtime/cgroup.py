"""Processors and memory that this process may use, within its affinity, control groups and rlimits.

Containers, Kubernetes and systemd limit a process with control groups (cgroups). /proc/meminfo and the number of processors
do not show these limits. Version 1 has a folder for each controller, version 2 one for all, and a machine may have both.
A group's limit also applies to the groups below it, so the smallest limit of this group and those above counts.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

ROOT = Path("/")  # proc and sys/fs/cgroup are read below it


def available_processors() -> int:
    """Threads that can run at once, limited by the affinity and by a quota.

    A cpuset is part of the affinity. A quota of 1.5 processors gives 1 thread. With 2 threads the group would use up its
    time and stop until the next period. That delays a frame more than having one thread less.
    """
    quota = quota_processors()
    return affinity_processors() if quota is None else max(1, min(affinity_processors(), int(quota)))


def affinity_processors() -> int:
    """Processors that the scheduler may put this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota_processors() -> float | None:
    """Processor time that the cgroups allow, in processors, such as 1.5; None without a quota."""
    found = [quota for folder in _groups("cpu") if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def memory_limit_nbytes() -> int | None:
    """Bytes that all processes of the cgroups may use together; None without a limit."""
    physical = _meminfo("MemTotal")
    limits = [limit for folder in _groups("memory") if (limit := _memory_limit(folder)) is not None]
    return min((limit for limit in limits if physical is None or limit < physical), default=None)


def total_memory() -> int | None:
    """Bytes that this process can have if nothing else runs; None if the system does not report them.

    The smallest of the machine's memory, each cgroup's limit and `ulimit -v`. It does not change with what else runs now.
    """
    return min(
        (limit for limit in (_physical_memory(), memory_limit_nbytes(), _address_limit()) if limit), default=None
    )


def available_memory() -> int | None:
    """Bytes that this process can still get without swapping; None if the system does not report them.

    The smallest of the free memory of the machine, of each cgroup and of `ulimit -v`. Pages of files count as free.
    """
    rooms = [_meminfo("MemAvailable"), _address_room(), *(_memory_room(folder) for folder in _groups("memory"))]
    return min((room for room in rooms if room is not None), default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The visible folders of this process's group and of the groups above it, in either version."""
    for mount, mounted_group, of_controller in _mounts(controller):
        for own in _own_groups(controller if of_controller else ""):
            below = own.relative_to(mounted_group) if own.is_relative_to(mounted_group) else PurePosixPath()
            if ".." in below.parts:  # a group outside the namespace that the mount shows
                below = PurePosixPath()
            folder = _below_root(mount)
            yield folder
            for part in below.parts:
                folder /= part
                yield folder


def _mounts(controller: str) -> Iterator[tuple[str, str, bool]]:
    """Mounts of a controller: the folder, the group at its top, and whether it is version 1."""
    for line in _lines("proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, described = before.split(), after.split()
        if len(fields) < 5 or len(described) < 3:
            continue
        if described[0] == "cgroup2":
            yield fields[4], fields[3], False
        elif described[0] == "cgroup" and controller in described[2].split(","):
            yield fields[4], fields[3], True


def _own_groups(controller: str) -> Iterator[PurePosixPath]:
    """This process's group: of a controller in version 1, with "" in version 2."""
    for line in _lines("proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            yield PurePosixPath(path)


def _quota(folder: Path) -> float | None:
    quota, period = _numbers(folder / "cpu.max", 2)  # version 2: "150000 100000" or "max 100000"
    if quota is None:
        (quota,), (period,) = _numbers(folder / "cpu.cfs_quota_us", 1), _numbers(folder / "cpu.cfs_period_us", 1)
    return quota / period if quota and period and quota > 0 else None  # version 1 writes -1 for no quota


def _memory_limit(folder: Path) -> int | None:
    """The smallest of a group's own limits. Version 1 writes a huge number if it has no limit."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    return min((limit for name in names if (limit := _numbers(folder / name, 1)[0]) is not None), default=None)


def _memory_room(folder: Path) -> int | None:
    """Bytes that a group's limit leaves free, 0 or more."""
    limit = _memory_limit(folder)
    used = _numbers(folder / "memory.current", 1)[0] or _numbers(folder / "memory.usage_in_bytes", 1)[0]
    if limit is None or used is None:
        return limit
    counted = dict(line.split()[:2] for line in _read(folder / "memory.stat") if len(line.split()) == 2)
    # Version 1's names with total_ count the groups below, too.
    files = [counted.get(f"total_{name}", counted.get(name, "0")) for name in ("inactive_file", "active_file")]
    return max(0, limit - max(0, used - sum(int(nbytes) for nbytes in files)))


def _meminfo(name: str) -> int | None:
    """Bytes of a line of /proc/meminfo."""
    with suppress(StopIteration, ValueError, IndexError):
        return next(int(line.split()[1]) * 1024 for line in _lines("proc/meminfo") if line.startswith(f"{name}:"))
    return None


def _physical_memory() -> int | None:
    """Bytes of the machine's memory."""
    if (total := _meminfo("MemTotal")) is not None:
        return total
    with suppress(AttributeError, ValueError, OSError):  # macOS has no /proc; Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _address_limit() -> int | None:
    """`ulimit -v` in bytes; None without one."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _address_room() -> int | None:
    """Bytes up to `ulimit -v`; None without one."""
    limit = _address_limit()
    if limit is None:
        return None
    import resource

    taken = next(iter(_lines("proc/self/statm")), "0").split()[0]
    return max(0, limit - int(taken) * resource.getpagesize())


def _numbers(path: Path, count: int) -> list[int | None]:
    """The first numbers of a file; None for a missing number or a word such as max."""
    words = " ".join(_read(path)).split()[:count]
    found: list[int | None] = [int(word) if word.lstrip("-").isdigit() else None for word in words]
    return found + [None] * (count - len(found))


def _lines(name: str) -> list[str]:
    return _read(ROOT / name)


def _read(path: Path) -> list[str]:
    """A file's lines; [] if it cannot be read."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().splitlines()
    return []


def _below_root(mount: str) -> Path:
    """A mount point. The kernel writes its blanks as \\040."""
    return ROOT / mount.replace("\\040", " ").lstrip("/")
