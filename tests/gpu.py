"""The GPU for tests marked `gpu`."""

import pytest

from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.errors import EngineError


def has_gpu() -> bool:
    try:
        CudaDevice()
    except EngineError:
        return False
    return True


def gpu_device() -> CudaDevice:
    """This machine's GPU; without one it skips the test with the reason."""
    try:
        return CudaDevice()
    except EngineError as error:
        pytest.skip(str(error))
