"""One graph of the codec alone, for recordings: codes of audio, and audio of codes. Called by `cli.voices`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.backend import choose_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import Buffer
from pplex.runtime.engine import Engine, fixed_shape, in_turn
from pplex.runtime.errors import EngineError
from pplex.runtime.graphs import GraphSpec

ENCODE, DECODE = "mimi_encode", "mimi_decode"


@dataclass(frozen=True)
class _OneGraph(Bundle):
    """A bundle of which only one graph is loaded."""

    graph: str

    @property
    def specs(self) -> dict[str, GraphSpec]:
        return {self.graph: super().specs[self.graph]}


def encode(bundle: Bundle, frames: Pcm, threads: int | None = None, device: str | None = None) -> Tokens:
    """Codes [F, 8] int64 of a recording's frames [F, 1920], the same as those of a runtime's encoder.

    Only the graph mimi_encode is loaded. `threads` and `device` as in `Runtime`. Raises EngineError if it cannot run here.
    """
    return _run(bundle, ENCODE, "pcm", frames[:, None], "codes", threads, device).astype(np.int64)


def decode(bundle: Bundle, codes: Tokens, threads: int | None = None, device: str | None = None) -> Pcm:
    """Samples [F * 1920] of codes [F, 8]: what a listener hears. As `encode`, with the graph mimi_decode."""
    pcm: Pcm = _run(bundle, DECODE, "codes", codes, "pcm", threads, device).reshape(-1)
    return pcm


def _run(
    bundle: Bundle, graph: str, source: str, inputs: Array, result: str, threads: int | None, device: str | None
) -> Array:
    """The outputs [F, ...] of a graph for its inputs [F, ...], frame by frame from an empty state."""
    step, arrays = _loaded(bundle, graph, threads, device)
    arrays["active"][...] = True
    outputs = []
    for frame in inputs:
        arrays[source][0] = frame
        step()
        outputs.append(arrays[result][0].copy())
    return np.stack(outputs)


def _loaded(
    bundle: Bundle, graph: str, threads: int | None, device: str | None
) -> tuple[Callable[[], None], Mapping[str, Array]]:
    """A function that runs one frame in a slot, and the host's arrays [1, ...] of the graph's inputs and outputs."""
    engines = {graph: bundle.manifest["engines"][graph]}
    manifest = {**bundle.manifest, "engines": engines}
    alone = _OneGraph(bundle.folder, manifest, bundle.config, bundle.precision, bundle.voices, graph)
    try:
        backend = choose_backend(alone, device, threads)
        queue, executor = backend.device, backend.load(alone, 1, 0)[graph]
    except EngineError as error:
        raise EngineError(f"This command runs the bundle's {graph}, which cannot run here.\n{error}") from error
    spec = executor.spec
    buffers = {t.name: queue.zeros(fixed_shape(t.shape, {"B": 1}), t.dtype) for t in spec.inputs + spec.outputs}
    arrays = {name: queue.staging(buffer) for name, buffer in buffers.items()}
    host = {name: Buffer.of(array) for name, array in arrays.items()}
    up = [queue.copy(buffers[t.name].whole, host[t.name].whole) for t in spec.inputs]
    down = [queue.copy(host[t.name].whole, buffers[t.name].whole) for t in spec.outputs]
    work = [*up, Engine(executor, queue, 1, {}).bind(buffers, 0, 1), *down]

    def step() -> None:
        in_turn(work)
        queue.synchronize()

    return step, arrays
