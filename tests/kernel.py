"""A folder in place of /, with the kernel's files about memory and control groups."""

from pathlib import Path

import pytest

from pplex.runtime import cgroup

V2 = "30 20 0:26 {at} {on} rw,nosuid - cgroup2 cgroup2 rw"
V1 = "30 20 0:26 {at} {on} rw,nosuid shared:9 - cgroup cgroup rw,{controller}"


class Kernel:
    """Writes files in a folder that `pplex.runtime.cgroup` reads instead of /; sizes in bytes."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self._root = root
        patch.setattr(cgroup, "ROOT", root)
        self.memory(total=64 << 30, available=48 << 30)
        self.write("proc/self/mountinfo", "")

    def write(self, name: str, text: str) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def memory(self, total: int, available: int) -> None:
        self.write("proc/meminfo", f"MemTotal: {total >> 10} kB\nMemFree: 1 kB\nMemAvailable: {available >> 10} kB\n")

    def group(self, path: str, *mounts: str) -> None:
        """Put this process in the group `path` of every controller; `mounts` are lines of mountinfo."""
        self.write("proc/self/cgroup", f"7:memory:{path}\n4:cpu,cpuacct:{path}\n0::{path}\n")
        self.write("proc/self/mountinfo", "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda rw", *mounts]) + "\n")

    def limits(self, folder: str, **files: str) -> None:
        """Files of a group, such as cpu_max="150000 100000"; the first _ of a name is its dot."""
        for name, text in files.items():
            self.write(f"{folder}/{name.replace('_', '.', 1)}", f"{text}\n")
