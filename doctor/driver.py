"""NVIDIA's driver, queried through its own library, without any CUDA package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.doctor.probe import probe
from pplex.runtime.gpus import FoundGpu

NVIDIA = "0x10de"
_ASK = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count, version, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
found = {"status": cuda.cuInit(0), "version": 0, "gpus": []}
cuda.cuDriverGetVersion(ctypes.byref(version))
found["version"] = version.value
if found["status"] == 0:
    found["status"] = cuda.cuDeviceGetCount(ctypes.byref(count))
for index in range(count.value):
    device, name, nbytes = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, 256, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(nbytes), device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    sm = 10 * capability[0] + capability[1]
    found["gpus"].append({"name": name.value.decode(errors="replace"), "sm": sm, "memory_nbytes": nbytes.value})
"""
# Codes of cuInit (cuda.h), and what to do.
_REFUSALS = {
    34: "a stub library is loaded instead of the driver's: remove its folder from LD_LIBRARY_PATH",
    100: "it sees no GPU: in a container, pass it one (docker run --gpus all); otherwise check CUDA_VISIBLE_DEVICES",
    803: "its library and its kernel module have different versions: restart the machine after an update",
    999: "it does not start: load its modules (nvidia-modprobe -u -c=0) or restart the machine, and check dmesg",
}


@dataclass(frozen=True)
class Driver:
    """`cuda`: the newest CUDA version that the driver supports, as in (13, 0). `error`: the reason if `gpus` is empty."""

    gpus: tuple[FoundGpu, ...] = ()
    cuda: tuple[int, int] = (0, 0)
    release: str | None = None
    error: str | None = None
    advice: str | None = None


def ask_driver() -> Driver:
    """The GPUs that CUDA sees, or the reason why it sees none."""
    answer = probe(_ASK)
    if answer.error is not None:
        return _without_library(answer.error)
    cuda = (answer.value["version"] // 1000, answer.value["version"] % 1000 // 10)
    status, gpus = answer.value["status"], tuple(FoundGpu(**gpu) for gpu in answer.value["gpus"])
    if gpus:
        return Driver(gpus, cuda, _release())
    advice = _REFUSALS.get(status or 100, "check nvidia-smi and dmesg")
    return Driver(
        (), cuda, _release(), f"NVIDIA's driver answers with error {status or 100}", f"{advice[0].upper()}{advice[1:]}."
    )


def _without_library(error: str) -> Driver:
    if "libcuda.so.1" not in error or "No such file" not in error:
        return Driver(error=f"NVIDIA's driver cannot be asked: {error}", advice="Install the driver again.")
    if _on_the_bus():
        advice = "Install NVIDIA's driver; in a container, pass it the GPU: docker run --gpus all."
        return Driver(error="This machine has an NVIDIA GPU, but the driver's libcuda.so.1 is missing.", advice=advice)
    return Driver(error="No NVIDIA GPU and no driver were found.")


def _on_the_bus() -> bool:
    """Whether the machine has an NVIDIA display or compute device, with or without a driver."""
    return any(
        _text(device / "vendor") == NVIDIA and _text(device / "class").startswith("0x03")
        for device in Path("/sys/bus/pci/devices").glob("*")
    )


def _release() -> str | None:
    """The driver's own version, such as 580.65.06."""
    return _text(Path("/sys/module/nvidia/version")) or None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def to_dict(driver: Driver) -> dict[str, Any]:
    """The driver as data for JSON."""
    gpus = [{"name": gpu.name, "sm": gpu.sm, "memory_nbytes": gpu.memory_nbytes} for gpu in driver.gpus]
    return {"gpus": gpus, "cuda": ".".join(map(str, driver.cuda)), "driver": driver.release}
