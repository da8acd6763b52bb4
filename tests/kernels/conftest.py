"""The kernel's library, and each level of instructions that this processor runs."""

from collections.abc import Iterator

import pytest

from pplex import kernels
from pplex.kernels import Kernel
from pplex.runtime.kernel_choice import AUTO


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """The library; afterwards the fastest level is in use again."""
    path = kernels.compiled()
    if path is None:
        pytest.skip("our kernels were not compiled: apt-get install g++, then pip install --editable . again")
    loaded = kernels.load(path)
    yield loaded
    loaded.use(AUTO)
