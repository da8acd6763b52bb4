"""What tests marked `gpu` run on."""

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
    """This machine's GPU; skips the test, with the reason, where there is none."""
    try:
        return CudaDevice()
    except EngineError as error:
        pytest.skip(str(error))
