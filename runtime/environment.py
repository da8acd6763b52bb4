"""Sets environment variables so that libraries send no telemetry and leave no files behind.

Called when `pplex.runtime` is imported, and around calls that make a library write a cache.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

ORT_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # ONNX Runtime's docs/Privacy.md
HUB_TELEMETRY = "HF_HUB_DISABLE_TELEMETRY"  # huggingface_hub and hf_xet
TORCH_CACHES = "TORCHINDUCTOR_CACHE_DIR"
MATPLOTLIB_CACHES, MATPLOTLIB_OWN_FONTS = "MPLCONFIGDIR", "MPL_IGNORE_SYSTEM_FONTS"


def disable_telemetry() -> None:
    """Turn off the telemetry of libraries, unless the operator has set their variable, to 0 for example.

    ONNX Runtime reads its variable when it is imported. If it is imported already, only later events can be stopped.
    """
    unset = [name for name in (ORT_TELEMETRY, HUB_TELEMETRY) if not os.environ.get(name)]
    os.environ.update(dict.fromkeys(unset, "1"))
    if ORT_TELEMETRY in unset and "onnxruntime" in sys.modules:
        sys.modules["onnxruntime"].disable_telemetry_events()


@contextmanager
def temporary_cache(variable: str, **others: str) -> Iterator[None]:
    """Set `variable` to a temporary folder, and `others`, unless the operator has set `variable`."""
    if os.environ.get(variable):
        yield
        return
    before = {name: os.environ.pop(name, None) for name in (variable, *others)}
    with tempfile.TemporaryDirectory(prefix="pplex-", ignore_cleanup_errors=True) as folder:
        os.environ.update({variable: folder, **others})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
