"""Counts the kernels that a call launches on the GPU, of any library, with torch's profiler (CUPTI): called by backends."""

from collections.abc import Callable, Mapping

from pplex.runtime.device import Call


def launched(calls: Mapping[str, Call], synchronize: Callable[[], None]) -> dict[str, int]:
    """Kernels by call, including those of captured graphs; empty if torch is missing, or finds no GPU or no kernel."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    counts = dict[str, int]()
    for name, call in calls.items():
        call()
        synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            synchronize()
        on_gpu = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        counts[name] = sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_gpu)
    return counts if all(counts.values()) else {}
