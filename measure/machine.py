"""A description of the machine, which every report carries. Called by `bench`, `server` and `validate`."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pplex.runtime.ort import available_threads


def machine(threads: int | None, *packages: str) -> dict[str, Any]:
    """Processor, threads, and versions of those packages that are installed."""
    return {
        "processor": _processor_name(),
        "threads": threads or available_threads(),
        "python": platform.python_version(),
        **{package: found for package in packages if (found := _version(package))},
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
