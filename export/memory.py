"""How a build gets and returns memory: called by `export.build`."""

import ctypes
import os

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # of torch: ask for pages of 2 MB


def return_freed_memory() -> None:
    """From now on, the process returns every freed block of a mebibyte or more to the system at once.

    glibc raises this limit up to 32 MiB by itself, and keeps what is smaller. Matrices of different sizes, made by several
    threads, then leave gaps: at the released size a measurement of sensitivities took 9.9 GB instead of 4.4 GB.

    New memory costs time, which the system needs to clear it page by page. So torch gets large pages, unless the environment
    says otherwise: a product of a number and a matrix of 32 MB then took 5 instead of 20 ms.
    """
    os.environ.setdefault(_LARGE_PAGES, "1")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
