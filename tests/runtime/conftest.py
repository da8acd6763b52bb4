"""Runtimes of the tiny bundle that the tests of this folder share."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import PCM, PERSONA, Heard, small_runtime, talk
from devices import QueueDevice
from tensorrt_stand_in import stand_in, write_plans

from pplex.runtime.backend import Backend, gpu_loader, host_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime

Place = Callable[[Bundle], tuple[Bundle, Backend]]


@pytest.fixture(params=["onnxruntime", "tensorrt", "tensorrt that cannot be captured"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A bundle, and a backend for it on a new device."""

    def make(bundle: Bundle) -> tuple[Bundle, Backend]:
        device = QueueDevice()
        if request.param == "onnxruntime":
            return bundle, host_backend(device, threads=1)
        library = stand_in(bundle, device, capturable=request.param == "tensorrt")
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
        for path in bundle.folder.iterdir():
            (tmp_path / path.name).symlink_to(path)
        manifest = {**bundle.manifest, "engines": write_plans(bundle, tmp_path, slots=4)}
        return replace(bundle, folder=tmp_path, manifest=manifest), Backend(device, gpu_loader(device))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def one(tiny_bundle: Bundle) -> Runtime:
    return small_runtime(tiny_bundle)


@pytest.fixture(scope="session")
def three(tiny_bundle: Bundle) -> Runtime:
    return small_runtime(tiny_bundle, 3)


@pytest.fixture(scope="session")
def eight(tiny_bundle: Bundle) -> Runtime:
    """Every call runs eight slots, whatever is in use, on one thread per processor."""
    return Runtime(tiny_bundle, slots=8, batches=[8])


@pytest.fixture(scope="session")
def uncached(tiny_bundle: Bundle) -> Runtime:
    """Primes every session without the cache, and keeps the logits."""
    return small_runtime(tiny_bundle, 3, prefix_bytes=0, logits=True)


@pytest.fixture(scope="session")
def alone(tiny_bundle: Bundle) -> Heard:
    """A sampled conversation of the first and only session of a runtime."""
    runtime = Runtime(tiny_bundle, slots=8, batches=[8])
    return talk(runtime.open("NATF0", PERSONA, seed=7), PCM[0])


@pytest.fixture(scope="session")
def only(tiny_bundle: Bundle) -> Runtime:
    """One slot, used and cleared."""
    runtime = small_runtime(tiny_bundle)
    with runtime.open(seed=0) as session:
        session.step(PCM[0, 0])
    return runtime
