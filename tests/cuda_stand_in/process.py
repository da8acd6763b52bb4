"""Makes this process use the stand-in, and reads the recorded calls."""

import ctypes
import sys
from dataclasses import dataclass
from enum import IntEnum

from cuda_stand_in.bindings import bindings
from cuda_stand_in.build import FOLDER, LIBRARIES, build


class Kind(IntEnum):
    """The same as `enum kind` in events.h."""

    KERNEL, LIBRARY, COPY, CAPTURE, REPLAY, MEMORY, WAIT, REFUSED, HOST = range(9)


@dataclass(frozen=True)
class Event:
    """One call. `captured`: it went into a CUDA graph and did not run. `name`: of a kernel (mangled) or a function."""

    kind: Kind
    captured: bool
    name: str


class _Event(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("captured", ctypes.c_int), ("name", ctypes.c_char_p))


class StandIn:
    """The calls of one process. Create it before onnxruntime and pplex.runtime are imported."""

    def __init__(self) -> None:
        folder = build()
        # The loader does not search for a library whose name is already loaded.
        loaded = [ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL) for library in LIBRARIES]
        self._runtime = loaded[0]
        self._runtime.stand_in_events.restype = ctypes.POINTER(_Event)
        sys.path.insert(0, str(FOLDER))
        runtime = bindings(self._runtime)
        sys.modules["cuda.bindings.runtime"] = runtime  # type: ignore[assignment]
        import onnxruntime

        onnxruntime.preload_dlls = lambda: None  # real libraries, if installed

    def take(self) -> list[Event]:
        """The calls since the last time."""
        count = ctypes.c_size_t()
        events = self._runtime.stand_in_events(ctypes.byref(count))
        taken = [Event(Kind(e.kind), bool(e.captured), e.name.decode()) for e in events[: count.value]]
        self._runtime.stand_in_forget()
        return taken
