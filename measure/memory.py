"""Memory of this process, in megabytes of 10^6 bytes. Called by `bench` and `validate`."""

import resource
from pathlib import Path


def peak_memory_mb() -> int:
    """Largest resident size of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def resident_mb() -> float | None:
    """Resident size of this process now; None if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return _megabytes(pages * resource.getpagesize())


def status_mb() -> dict[str, float]:
    """The sizes in /proc/self/status, such as VmHWM and RssAnon; empty if the system does not have this file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: _megabytes(1024 * int(value.split()[0])) for name, _, value in fields}


def _megabytes(nbytes: int) -> float:
    return round(nbytes / 1e6, 1)
