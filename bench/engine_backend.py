"""The engines of a bundle as a backend of a sweep: see sweep.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pplex.bench.bandwidth import Bandwidth, copy_bandwidth
from pplex.bench.frame import ENGINES
from pplex.bench.kernels import launched
from pplex.bench.sweep import SweepOptions, SweepReport, moved_nbytes, sweep
from pplex.measure.machine import machine
from pplex.runtime.arrays import Array
from pplex.runtime.backend import choose_backend, engines_nbytes, open_to_run
from pplex.runtime.bundle import Bundle
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.device import Call, Device
from pplex.runtime.memory import fitting_slots, slot_nbytes
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.stages import Stages


def bench_stages(folder: Path, options: SweepOptions) -> SweepReport:
    """Measure the bundle in `folder`, as in `sweep`. Raises BundleError, EngineError."""
    return sweep(EngineBackend(open_to_run(folder, options.device), options.slots, options.device), options)


class EngineBackend:
    """A bundle on its device, with as many slots as fit; the KV cache holds noise for the context steps."""

    def __init__(self, bundle: Bundle, slots: int, device: str | None):
        backend = choose_backend(bundle, device, threads=None)
        self._bundle, self.device, self._noise = bundle, backend.device, np.random.default_rng(0)
        self._bandwidth = _bandwidth(backend.device)
        self.slots = fitting_slots(
            backend.device.free_nbytes(),
            slot_nbytes(bundle.specs.values(), bundle.config.temporal.capacity),
            engines_nbytes(bundle.manifest),
            slots,
        )
        self._stages = Stages(bundle, self.slots, device=backend)
        self.title = f"stages of {bundle.folder.name}"
        self.machine: Mapping[str, Any] = {"device": backend.device.name, **machine(None, *ENGINES, "numpy")}
        self.figures: Mapping[str, Any] = {
            "precision": dict(bundle.precision),
            "engines": {name: engine["kind"] for name, engine in bundle.manifest["engines"].items()},
            "not captured": {
                name: reason
                for name, executor in self._stages.executors.items()
                if (reason := getattr(executor, "uncaptured", None))
            },
            "GB/s": round(self._bandwidth / 1e9, 1),
        }
        self._filled = np.zeros(self.slots, np.int64)

    def prepare(self, slots: int, context_steps: int) -> Mapping[str, Call]:
        self._fill_rings(slots, context_steps)
        stages, config = self._stages, self._bundle.config
        stages.pcm_in[:slots] = self._noise.normal(0, 0.05, stages.pcm_in[:slots].shape)
        stages.active[:slots] = True
        card = min(config.audio_card, config.text_card)
        for codes in (stages.codes, stages.agent_codes):
            codes[:slots] = self._noise.integers(0, card, codes[:slots].shape)
        stages.text_top_k[:slots], stages.audio_top_k[:slots] = 250, 250
        noise = stages.make_noise()
        for row in range(slots):
            noise.open(row, seed=row)
        noise.draw(np.arange(slots))
        stages.forced_text[:slots], stages.forced_audio[:slots] = -1, -1
        return stages.parts(slots)

    def frame(self, slots: int) -> None:
        self._stages.run_frame(slots)

    def floor_ms(self, slots: int, context_steps: int) -> Mapping[str, float]:
        bundle = self._bundle
        moved = moved_nbytes(bundle.config, bundle.precision, slots, context_steps, bundle.forms)
        return {graph: 1000 * moved[graph] / self._bandwidth for graph in GRAPH_NAMES}

    def kernels(self, calls: Mapping[str, Call]) -> Mapping[str, int]:
        return launched(calls, self.device.synchronize) if isinstance(self.device, CudaDevice) else {}

    def _fill_rings(self, slots: int, context_steps: int) -> None:
        """Fill the KV cache of slots with noise where it is not filled yet; zeros would be multiplied faster."""
        kept = min(context_steps, self._bundle.config.temporal.capacity)
        new = np.flatnonzero(self._filled[:slots] < kept)
        if new.size:
            stack, engine = self._bundle.config.temporal, self._stages.engines["temporal"]
            noise = self._noise.standard_normal((stack.heads, kept, stack.head_dim), np.float32)
            self._stages.restore(0, {ring.name: _stored(noise, ring.dtype) for ring in engine.spec.state})
            self._stages.position[:slots] = kept
            self._stages.make_room(slots)
            for ring in engine.state.values():
                for row in new[new > 0].tolist():
                    self.device.copy(ring.rows(row, 1).whole, ring.rows(0, 1).whole)()
            self._filled[new] = kept
        self._stages.position[:slots] = context_steps


def _stored(values: Array, dtype: str) -> Array:
    """float32 values as a KV cache of `dtype` stores them; bfloat16 as bits, the upper half of a float32's."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(dtype)


def _bandwidth(device: Device) -> float:
    """Bytes a second: of a copy on a GPU, read and written; of all processors on a host, read."""
    return copy_bandwidth(device) if isinstance(device, CudaDevice) else Bandwidth(None).measure()
