"""A build's memory: freed matrices go back to the system, and matrices in 16 bits compute as in 32."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pplex.export.layers import Linear

FREED = """
import ctypes, torch
from pplex.export.memory import return_freed_memory
assert hasattr(ctypes.CDLL(None), "mallopt")
return_freed_memory()
for _ in range(3):
    many = [torch.ones(1 << 21) for _ in range(50)]  # 8 MB each
    kept = torch.ones(1 << 16)
    del many
memory = dict(line.split(":") for line in open("/proc/self/status"))
print(int(memory["RssAnon"].split()[0]) / 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's memory in /proc")
def test_freed_matrices_return_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False)
    if "AssertionError" in done.stderr:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300, "MB; 400 are freed"


FAULTS = """
import resource, torch
from pplex.export.memory import return_freed_memory
return_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(1 << 24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_new_matrices_get_large_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this system has no transparent large pages")
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * 16384 / 4, "page faults; with pages of 4 KB each matrix has 16,384"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_matrix_in_16_bits_computes_as_in_32(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    narrow, wide = Linear(32, 48), Linear(32, 48)
    narrow.weight.data = torch.randn(32, 48, generator=random).to(dtype)
    wide.weight.data = narrow.weight.data.float()
    x, gradient = torch.randn(5, 32, generator=random), torch.randn(5, 48, generator=random)
    results = []
    for linear in (narrow, wide):
        linear.requires_grad_(False)
        given = x.clone().requires_grad_()
        y = linear(given)
        y.backward(gradient)
        results.append((y.detach(), given.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
