"""The four engines, the buffers between them, the KV cache, and the calls that run a frame. Called by `runtime.session`."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array, Tokens
from pplex.runtime.backend import Backend, choose_backend
from pplex.runtime.buffers import NOISE, FrameBuffers
from pplex.runtime.bundle import Bundle
from pplex.runtime.device import Call
from pplex.runtime.engine import Engine
from pplex.runtime.errors import EngineError
from pplex.runtime.frame import FrameRunner
from pplex.runtime.kv_cache import KvCache, ring_lengths
from pplex.runtime.noise import Noise
from pplex.runtime.pipeline import CODEC_GRAPHS, GRAPH_NAMES, LANGUAGE_GRAPHS


class Stages:
    """Steps slots 0, ..., batch - 1 together.

        arrays      the host's inputs and outputs of the graphs: the attributes below, [S, ...] each, shaped as in GraphSpec
        buffers     the device's memory for each array
        frame       uploads, graphs and downloads as one prepared call: on a GPU one CUDA graph per batch size
        kv_cache    the length of the temporal transformer's rings

    A call reads its inputs from the arrays and writes its outputs to them. An inactive slot keeps its codec state. Its row
    of every other array must hold valid values; the initial values are valid.
    """

    def __init__(
        self,
        bundle: Bundle,
        slots: int,
        threads: int | None = None,
        device: str | Backend | None = None,
        logits: bool = False,
        spare: int = 0,
    ):
        """`device` as in `choose_backend`, or a backend. `logits`: the arrays include the logits.

        `spare`: slots after the others, which run alone only.
        """
        backend = device if isinstance(device, Backend) else choose_backend(bundle, device, threads)
        self.executors = backend.load(bundle, slots, spare)
        slots += spare
        self.slots, self.device, self._thread = slots, backend.device, threading.current_thread()
        capacity = bundle.config.temporal.capacity
        lengths = [capacity] if self.executors["temporal"].fixed_rings else ring_lengths(capacity)
        self.engines = {
            name: Engine(self.executors[name], self.device, slots, {"C": lengths[0]}) for name in GRAPH_NAMES
        }
        codec_entries = bundle.config.mimi.steps_per_frame
        self._ring_entries = {"mimi_encode": codec_entries, "temporal": 1, "depth": 0, "mimi_decode": codec_entries}

        self.buffers = FrameBuffers([engine.spec for engine in self.engines.values()], self.device, slots, logits)
        self._name_arrays()
        self.frame = FrameRunner(self.executors, self.engines, self.device, self.buffers, bundle.config.delays)
        self.kv_cache = KvCache(self.engines["temporal"], slots, lengths, self.frame)

    def _name_arrays(self) -> None:
        encode, temporal, depth, decode = (self.buffers.arrays[name] for name in GRAPH_NAMES)
        self.pcm_in, self.active, self.user_codes = encode["pcm"], encode["active"], encode["codes"]
        self.codes, self.position, self.forced_text = temporal["codes"], temporal["position"], temporal["forced_text"]
        self.noise, self.noise_offset, self.noise_stride = (temporal[name] for name in NOISE)
        self.text_temperature, self.text_top_k = temporal["text_temperature"], temporal["text_top_k"]
        self.replacement, self.draw = temporal["replacement"], temporal["draw"]
        self.hidden, self.text_token = temporal["hidden"], temporal["text_token"]
        self.audio_temperature, self.audio_top_k = depth["audio_temperature"], depth["audio_top_k"]
        self.forced_audio, self.audio_tokens = depth["forced_audio"], depth["audio_tokens"]
        self.agent_codes, self.pcm_out = decode["codes"], decode["pcm"]

    def check_thread(self) -> None:
        """Raise EngineError if an executor allows only the thread that made the stages, and this is another one."""
        thread = threading.current_thread()
        if thread is not self._thread and any(executor.one_thread for executor in self.executors.values()):
            raise EngineError(
                f"This bundle was loaded in the thread {self._thread.name}, and is used in {thread.name}. "
                "ONNX Runtime keeps its CUDA graphs by thread, so another thread would capture all of them again. "
                "Load the bundle, open its sessions and step them in one thread: ThreadPoolExecutor(max_workers=1)"
            )

    # Calls.

    def run_frame(self, batch: int) -> None:
        """Run the whole frame of slots 0, ..., batch - 1.

        The decoder gets the streams with the longest delay directly from the depth graph. It reads the other streams from
        the array `agent_codes`.
        """
        self.make_room(batch)
        self.frame.run(GRAPH_NAMES, batch)

    def run_language(self, batch: int) -> None:
        """Run a frame without the codec."""
        self.make_room(batch)
        self.frame.run(LANGUAGE_GRAPHS, batch)

    def run(self, graph: str, batch: int, row: int = 0) -> None:
        """Run one graph for slots row, ..., row + batch - 1."""
        if graph == "temporal":
            self.make_room(batch, row)
        self.frame.run((graph,), batch, row)

    def run_forced(self, row: int, position: int, codes: Tokens, embedding: npt.NDArray[np.float32]) -> None:
        """Run forced steps of one slot's temporal transformer: codes [T, 17], embedding [T, dim]. Nothing is sampled."""
        self.position[row], self.forced_text[row] = position, 0
        self.make_room(1, row, len(codes))
        self.frame.run_forced(row, codes, embedding)

    def make_room(self, batch: int, row: int = 0, steps: int = 1) -> None:
        """Make rings long enough for `steps` more steps of slots row, ..., row + batch - 1. The runs above do this, too."""
        self.kv_cache.reserve(row, self.position[row : row + batch] + steps)

    def warm_up(self, batches: Sequence[int]) -> None:
        """Make each call of a conversation once, because the first time is slow. No slot may be in use."""
        for batch in batches:
            for _ in range(2 if self.device.captures else 1):
                self.run_frame(batch)
        if self.device.captures:
            for graph in GRAPH_NAMES:
                self.run(graph, 1)
            forced = self.buffers.forced_arrays
            self.run_forced(0, 0, forced["codes"][:2], forced["embedding"][:2])
            self.reset(0, 2)
        for executor in self.executors.values():
            executor.save_cache()

    # Slots.

    def reset(self, row: int, steps: int) -> None:
        """Clear a slot after `steps` steps of the temporal transformer."""
        for engine in self.engines.values():
            engine.reset(row, self._ring_entries[engine.spec.name] * steps)
        self.kv_cache.release(row)

    def save(self, row: int, steps: int) -> dict[str, Array]:
        """A copy of a slot's first `steps` entries of the KV cache, as in `Engine.save`."""
        return self.kv_cache.save(row, steps)

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        self.kv_cache.restore(row, saved)

    def save_codec(self, row: int) -> dict[str, Array]:
        """A copy of the codec's state of a slot, by graph and state."""
        saved = {graph: self.engines[graph].save_state(row) for graph in CODEC_GRAPHS}
        return {f"{graph}.{name}": array for graph, state in saved.items() for name, array in state.items()}

    def restore_codec(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save_codec` gave, into any slot."""
        for graph in CODEC_GRAPHS:
            states = self.engines[graph].spec.state
            self.engines[graph].restore_state(row, {s.name: saved[f"{graph}.{s.name}"] for s in states})

    def make_noise(self) -> Noise:
        """The writer of the noise of all slots. Only one such object may be in use."""
        return Noise(self.noise, self.noise_offset, self.noise_stride, self.buffers.upload_noise)

    # For measurements and validation.

    def tensors(self, graph: str) -> Mapping[str, Array]:
        """A graph's inputs and outputs by name, [S, ...] each."""
        return self.buffers.arrays[graph]

    def parts(self, batch: int) -> dict[str, Call]:
        """The graphs of the frame of slots 0, ..., batch - 1, as in `FrameRunner.parts`."""
        self.make_room(batch)
        return self.frame.parts(batch)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in calls until now, by graph, or as one figure if the device cannot time single graphs."""
        return self.frame.seconds

    @property
    def ring_length(self) -> int:
        """Entries of the temporal transformer's rings that a step reads now."""
        return self.kv_cache.ring_length
