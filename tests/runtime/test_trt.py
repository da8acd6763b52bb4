"""Use of TensorRT's contexts, with a stand-in that raises where the real library is undefined."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import QueueDevice
from tensorrt_stand_in import Context, stand_in, write_plans

from pplex.runtime.backend import Backend, cache_path, gpu_loader
from pplex.runtime.bundle import Bundle
from pplex.runtime.engine import Engine
from pplex.runtime.errors import EngineError
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.runtime.trt import LoadedEngine, Scratch, TensorRTExecutor
from pplex.runtime.trt_library import TENSORRT_LIBRARIES, RuntimeErrors

PCM = np.random.default_rng(1).normal(0, 0.1, (10, 1920)).astype(np.float32)


@pytest.fixture
def device() -> QueueDevice:
    return QueueDevice()


@pytest.fixture
def compiled(
    engine_bundle: Bundle, tmp_path: Path, device: QueueDevice, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bundle, Backend]:
    for path in engine_bundle.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    manifest = {**engine_bundle.manifest, "engines": write_plans(engine_bundle, tmp_path, slots=4)}
    bundle = replace(engine_bundle, folder=tmp_path, manifest=manifest)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in(bundle, device))
    return bundle, Backend(device, gpu_loader(device))  # type: ignore[arg-type]


def contexts_of(stages: Stages, graph: str) -> list[Context]:
    executor = stages.executors[graph]
    assert isinstance(executor, TensorRTExecutor)
    contexts: list[Context] = executor._plan.engine.contexts
    return contexts


def caches(bundle: Bundle) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bundle.folder / "caches").iterdir()}


def talk(runtime: Runtime) -> list[list[int]]:
    with runtime.open("NATF0", "Hello", seed=1) as session:
        return [session.step(frame).tokens.tolist() for frame in PCM]


def test_one_context_per_batch_size_and_one_shared_per_profile(compiled: tuple[Bundle, Backend]) -> None:
    bundle, backend = compiled
    stages = Runtime(bundle, slots=4, device=backend).stages
    made = {
        graph: [(c.shapes[c.engine.spec.inputs[0].name][0], c.profile, c.captured) for c in contexts_of(stages, graph)]
        for graph in bundle.specs
    }
    assert made == {
        "mimi_encode": [(2, 1, True), (4, 2, True), (1, 0, False)],
        "temporal": [(2, 2, True), (4, 3, True), (1, 0, False), (1, 1, False)],
        "depth": [(2, 0, True), (4, 0, True), (1, 0, False)],
        "mimi_decode": [(2, 1, True), (4, 2, True), (1, 0, False)],
    }


def test_contexts_share_memory(compiled: tuple[Bundle, Backend]) -> None:
    bundle, backend = compiled
    stages = Runtime(bundle, slots=2, device=backend).stages
    assert len({context.scratch for graph in bundle.specs for context in contexts_of(stages, graph)}) == 1


def test_more_than_the_profile_allows_is_refused_with_the_library_message(compiled: tuple[Bundle, Backend]) -> None:
    bundle, backend = compiled
    engines = {name: {**entry, "slots": 8} for name, entry in bundle.manifest["engines"].items()}
    stages = Stages(replace(bundle, manifest={**bundle.manifest, "engines": engines}), 8, device=backend)
    with pytest.raises(
        EngineError, match=r"mimi_encode: tensorrt-rtx cannot take pcm of shape \[8, 1, 1920\]: .* 8 is"
    ):
        stages.run("mimi_encode", 8)


def test_compiled_kernels_are_found_at_the_next_load(compiled: tuple[Bundle, Backend]) -> None:
    bundle, backend = compiled
    expected = talk(Runtime(bundle, 4, device=backend))
    stored = caches(bundle)
    assert stored.keys() == {f"{graph}.sm_89.cache" for graph in bundle.specs}
    assert all(len(json.loads(kernels)) == 2 for kernels in stored.values())  # one for each batch size
    times = {path: path.stat().st_mtime_ns for path in (bundle.folder / "caches").iterdir()}
    assert talk(Runtime(bundle, 2, device=backend)) == expected
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_kernels_that_do_not_match_are_compiled_again(compiled: tuple[Bundle, Backend]) -> None:
    bundle, backend = compiled
    stale = cache_path(bundle.folder, "temporal", backend.device.gpu)  # type: ignore[attr-defined]
    stale.parent.mkdir()
    stale.write_bytes(b"of another driver")
    Runtime(bundle, 1, device=backend)
    assert len(json.loads(stale.read_bytes())) == 1


def test_a_read_only_bundle_runs_without_cached_kernels(compiled: tuple[Bundle, Backend]) -> None:
    bundle, backend = compiled
    (bundle.folder / "caches").write_text("in the way")
    assert talk(Runtime(bundle, 1, device=backend))


def test_kernels_that_the_library_does_not_return_are_not_cached(
    compiled: tuple[Bundle, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, backend = compiled
    monkeypatch.setattr("tensorrt_stand_in.Kernels.serialize", lambda self: None)
    assert talk(Runtime(bundle, 1, device=backend))
    assert not (bundle.folder / "caches").exists()


@pytest.mark.usefixtures("compiled")
def test_only_the_newest_errors_are_kept() -> None:
    errors = RuntimeErrors(sys.modules["tensorrt_rtx"])
    assert errors.last() == "no reason given"
    for i in range(1000):
        assert errors.recorder.report_error("code", f"error {i}")
    assert errors.last() == "error 999" and errors.recorder.num_errors() == 16
    assert [errors.recorder.get_error_desc(i) for i in (0, 15)] == ["error 984", "error 999"]
    errors.recorder.clear()
    assert errors.last() == "no reason given"


def test_tensorrt_caches_no_kernels(compiled: tuple[Bundle, Backend], device: QueueDevice) -> None:
    bundle, _ = compiled
    for path in bundle.folder.glob("*.engine"):
        plan = LoadedEngine(stand_in(bundle, device), TENSORRT_LIBRARIES["tensorrt"], path, bundle.specs[path.stem])
        scratch = Scratch(device, plan.scratch_nbytes)  # type: ignore[arg-type]
        executor = TensorRTExecutor(plan, device, 2, scratch, bundle.folder / "caches" / "none")  # type: ignore[arg-type]
        engine = Engine(executor, device, 2, {"C": bundle.config.temporal.capacity})
        sizes = {"B": 2, "T": 1}
        tensors = {
            t.name: device.zeros(tuple(sizes.get(d, d) for d in t.shape), t.dtype)  # type: ignore[call-overload]
            for t in plan.spec.inputs
        }
        call = engine.bind({**tensors, plan.spec.outputs[0].name: output(device, plan)}, 0, 2, repeated=True)
        call()
        assert executor.capturable and plan.engine.contexts[0].how == "user managed"
        device.capture(call)()
        device.synchronize()
        executor.save_cache()
    assert not (bundle.folder / "caches").exists()


def output(device: QueueDevice, plan: LoadedEngine) -> Any:
    tensor = plan.spec.outputs[0]
    return device.zeros((2, *(int(dim) for dim in tensor.shape[1:])), tensor.dtype)
