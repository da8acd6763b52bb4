"""Returns freed memory to the system: called by `export.build`."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20


def return_freed_memory() -> None:
    """From now on, the process returns every freed block of a mebibyte or more to the system at once.

    glibc raises this limit up to 32 MiB by itself, and keeps what is smaller. Matrices of different sizes, made by several
    threads, then leave gaps: at the released size a measurement of sensitivities took 9.9 GB instead of 4.4 GB.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
