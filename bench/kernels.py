"""How many kernels a call launches on the GPU, as CUPTI tells torch's profiler, whichever library launches them."""

from collections.abc import Callable, Mapping

from pplex.runtime.device import Call


def launched(calls: Mapping[str, Call], synchronize: Callable[[], None]) -> dict[str, int]:
    """Kernels by call, those within captured graphs too; nothing where torch is missing, or sees no GPU or no kernel."""
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
