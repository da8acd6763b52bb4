"""The four engines side by side: host arrays for S slots, and prepared calls that take a batch of them through a frame."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array, Tokens
from pplex.runtime.backend import Backend, choose_backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.device import Buffer, Call
from pplex.runtime.engine import Engine, fixed_shape, in_turn
from pplex.runtime.graphs import MAX_STEPS, TensorSpec
from pplex.runtime.noise import Noise
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS

Key = tuple[tuple[str, ...], int, int]  # graphs, batch, first row

LOGITS = ("text_logits", "audio_logits")  # outputs that only validation reads
NOISE = ("noise", "noise_offset", "noise_stride")  # inputs that the language graphs share
STAYING = ("embedding", "noise")  # inputs that are not uploaded with each call: zeros but in forced steps; tables
DEVICE = "device"  # in `Stages.seconds`: the work of a device, where graphs cannot be told apart

SHORTEST_RING = 128  # steps, 10 s: what a conversation starts with


class Stages:
    """What one frame goes through, for slots 0, ..., batch - 1 at once.

    The arrays below are [S, ...], shaped as in GraphSpec: a call reads its inputs from them and leaves its outputs in them.
    A slot that is not active keeps its codec state, and its row of every other array must hold valid values, as it does
    from the start.

    On a GPU each array has a buffer of the device beside it. A frame is then an upload, four graphs and a download,
    captured as one CUDA graph per batch size.

    A step of the temporal transformer reads its rings whole. They are as long as the longest conversation in a slot needs,
    one of `ring_lengths`, and get longer when it does, where the engine can take that.
    """

    def __init__(
        self,
        bundle: Bundle,
        slots: int,
        threads: int | None = None,
        device: str | Backend | None = None,
        logits: bool = False,
    ):
        """`device` as in `choose_backend`, or a backend of one's own; with `logits`, they are among the arrays too."""
        backend = device if isinstance(device, Backend) else choose_backend(bundle, device, threads)
        self.slots, self._config, self.device = slots, bundle.config, backend.device
        self.executors = backend.load(bundle, slots)
        capacity = bundle.config.temporal.capacity
        self._ring_lengths = [capacity] if self.executors["temporal"].fixed_rings else ring_lengths(capacity)
        self._ring_length, self._written = self._ring_lengths[0], np.zeros(slots, np.int64)
        sizes = {"C": self._ring_length}
        self.engines = {name: Engine(self.executors[name], self.device, slots, sizes) for name in GRAPH_NAMES}
        codec_entries = bundle.config.mimi.steps_per_frame
        self._ring_entries = {"mimi_encode": codec_entries, "temporal": 1, "depth": 0, "mimi_decode": codec_entries}

        self._buffers = self._make_buffers(logits)
        self._tensors = self._make_arrays()
        self._forced = {
            t.name: self._zeros(t, MAX_STEPS) for t in self.engines["temporal"].spec.inputs if "T" in t.shape
        }
        self._forced_arrays = {name: self.device.staging(buffer) for name, buffer in self._forced.items()}
        self._name_arrays()
        for row in range(slots):
            self._upload_noise(row, 0, self.noise.shape[1])

        self.seconds = dict.fromkeys([DEVICE] if self.device.captures else GRAPH_NAMES, 0.0)  # spent in calls so far
        self._bound: dict[tuple[str, int], Call] = {}
        self._prepared: dict[Key, Call] = {}
        self._calls: dict[Key, Call] = {}

    def _name_arrays(self) -> None:
        encode, temporal, depth, decode = (self._tensors[name] for name in GRAPH_NAMES)
        self.pcm_in, self.active, self.user_codes = encode["pcm"], encode["active"], encode["codes"]
        self.codes, self.position, self.forced_text = temporal["codes"], temporal["position"], temporal["forced_text"]
        self.noise, self.noise_offset, self.noise_stride = (temporal[name] for name in NOISE)
        self.text_temperature, self.text_top_k = temporal["text_temperature"], temporal["text_top_k"]
        self.hidden, self.text_token, self.forced_audio = (
            temporal["hidden"],
            temporal["text_token"],
            depth["forced_audio"],
        )
        self.audio_temperature, self.audio_top_k = depth["audio_temperature"], depth["audio_top_k"]
        self.audio_tokens, self.agent_codes, self.pcm_out = depth["audio_tokens"], decode["codes"], decode["pcm"]

    # Calls.

    def run_frame(self, batch: int) -> None:
        """The whole frame of slots 0, ..., batch - 1.

        The decoder's `agent_codes` are read from the array for the streams whose delay is shorter than the longest; the
        others are what the depth graph has just given.
        """
        self._run(GRAPH_NAMES, batch)

    def parts(self, batch: int) -> dict[str, Call]:
        """For measurements: the graphs of the frame of slots 0, ..., batch - 1 in order, each as a call that enqueues it.

        What the host has put into the arrays is uploaded now. The graphs' outputs stay on the device.
        """
        self._reach(0, batch, 1)
        in_turn(self._transfers(GRAPH_NAMES, batch, 0)[0])
        calls = {graph: self._bind_frame(graph, batch) for graph in GRAPH_NAMES}
        in_turn(list(calls.values()))  # for the first time, in which libraries set themselves up
        self.device.synchronize()
        return {
            graph: self.device.capture(call) if self.device.captures and self.executors[graph].capturable else call
            for graph, call in calls.items()
        }

    def make_room(self, batch: int) -> None:
        """Make rings long enough for a step of slots 0, ..., batch - 1 at their positions, which steps also do."""
        self._reach(0, batch, 1)

    def run_language(self, batch: int) -> None:
        """A frame without the codec."""
        self._run(LANGUAGE_GRAPHS, batch)

    def run(self, graph: str, batch: int, row: int = 0) -> None:
        """Run one graph for slots row, ..., row + batch - 1."""
        self._run((graph,), batch, row)

    def run_forced(self, row: int, position: int, codes: Tokens, embedding: npt.NDArray[np.float32]) -> None:
        """Take one slot's temporal state through forced steps: codes [T, 17], embedding [T, dim]; nothing is sampled."""
        self.position[row], self.forced_text[row] = position, 0
        self._reach(row, 1, len(codes))
        buffers, uploads = {name: buffer.rows(row, 1) for name, buffer in self._buffers["temporal"].items()}, []
        for name, given in (("codes", codes), ("embedding", embedding)):
            chunk, array = self._forced[name].rows(0, len(given)), self._forced_arrays[name][: len(given)]
            array[...] = given
            buffers[name] = replace(chunk, shape=(1, *chunk.shape))
            uploads += self._transfer(chunk, array, up=True)
        for name in ("position", "forced_text", "text_temperature", "text_top_k"):
            uploads += self._transfer(buffers[name], self._tensors["temporal"][name][row : row + 1], up=True)
        in_turn([*uploads, self.engines["temporal"].bind(buffers, row, 1)])
        self.device.synchronize()

    def make_noise(self) -> Noise:
        """What writes the noise of all slots; not for two at a time."""
        return Noise(self.noise, self.noise_offset, self.noise_stride, self._upload_noise)

    def _upload_noise(self, row: int, start: int, count: int) -> None:
        """Copy entries start, ..., start + count - 1 of one slot's table to the engines."""
        host, buffer = Buffer.of(self.noise), self._buffers["temporal"]["noise"]
        if host.address != buffer.address:
            target, source = (side.rows(row, 1).part(1, start, count) for side in (buffer, host))
            self.device.copy(target, source)()
            self.device.synchronize()  # the table may be written again at once

    def warm_up(self, batches: Sequence[int]) -> None:
        """Make the calls that a conversation makes, for the first time, which is slow; no slot may be in use."""
        for batch in batches:
            for _ in range(2 if self.device.captures else 1):
                self.run_frame(batch)
        if self.device.captures:
            self.run("mimi_encode", 1)
            self.run_forced(0, 0, self._forced_arrays["codes"][:2], self._forced_arrays["embedding"][:2])
            self.reset(0, 2)
        for executor in self.executors.values():
            executor.save_cache()

    def reset(self, row: int, steps: int) -> None:
        """Make a slot new after `steps` steps of the temporal transformer."""
        for engine in self.engines.values():
            engine.reset(row, self._ring_entries[engine.spec.name] * steps)
        self._written[row] = 0
        needed = self._length_for(int(self._written.max()))
        if 2 * needed <= self._ring_length:  # not for a little: a ring that has just been left may soon be needed again
            self._resize_rings(needed)

    def save(self, row: int, steps: int) -> dict[str, Array]:
        """A copy of what the temporal transformer remembers of a slot's first `steps` steps, as in `Engine.save`."""
        return self.engines["temporal"].save(row, steps)

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        self._written[row] = max(entries.shape[1] for entries in saved.values())
        self._make_room()
        self.engines["temporal"].restore(row, saved)

    @property
    def ring_length(self) -> int:
        """Entries of the temporal transformer's rings that a step reads now."""
        return self._ring_length

    def tensors(self, graph: str) -> Mapping[str, Array]:
        """A graph's inputs and outputs by name, [S, ...] each."""
        return self._tensors[graph]

    # How calls are made.

    def _run(self, graphs: tuple[str, ...], batch: int, row: int = 0) -> None:
        if "temporal" in graphs:
            self._reach(row, batch, 1)
        began = time.perf_counter()
        self._call((graphs, batch, row))()
        self.device.synchronize()
        if DEVICE in self.seconds:
            self.seconds[DEVICE] += time.perf_counter() - began

    def _call(self, key: Key) -> Call:
        """A call as prepared when it is made for the first time, in which libraries set themselves up; then captured."""
        if key not in self._calls:
            if key not in self._prepared:
                self._prepared[key] = self._prepare(*key)
                return self._prepared[key]
            self._calls[key] = self._captured(key[0], self._prepared.pop(key))
        return self._calls[key]

    def _captured(self, graphs: tuple[str, ...], call: Call) -> Call:
        """A frame's call as one graph of the device's; one graph's own calls are made too seldom."""
        worthwhile = self.device.captures and len(graphs) > 1
        return self.device.capture(call) if worthwhile and all(self.executors[g].capturable for g in graphs) else call

    def _prepare(self, graphs: tuple[str, ...], batch: int, row: int) -> Call:
        uploads, downloads = self._transfers(graphs, batch, row)
        work = list[Call]()
        for graph in graphs:
            if graph == "mimi_decode" and len(graphs) > 1:
                work += self._just_spoken(batch)
            work.append(self._bind_frame(graph, batch) if len(graphs) > 1 else self._bind(graph, batch, row, False))
        return partial(in_turn, [*uploads, *work, *downloads])

    def _bind_frame(self, graph: str, batch: int) -> Call:
        """A graph's call in a frame, which whole frames and frames without the codec share."""
        if (graph, batch) not in self._bound:
            self._bound[graph, batch] = self._bind(graph, batch, 0, True)
        return self._bound[graph, batch]

    def _bind(self, graph: str, batch: int, row: int, repeated: bool) -> Call:
        buffers = {name: buffer.rows(row, batch) for name, buffer in self._buffers[graph].items()}
        call = self.engines[graph].bind(buffers, row, batch, repeated)
        # Not a method: a call that refers to its stages would keep them and their engines in memory.
        return call if DEVICE in self.seconds else partial(_time, self.seconds, graph, call)

    def _transfers(self, graphs: tuple[str, ...], batch: int, row: int) -> tuple[list[Call], list[Call]]:
        """Uploads of what no graph before has made, and downloads of what the host reads."""
        uploads, downloads, there = list[Call](), list[Call](), set[int]()
        for graph in graphs:
            spec, buffers, arrays = self.engines[graph].spec, self._buffers[graph], self._tensors[graph]
            for name in (t.name for t in spec.inputs if t.name not in STAYING):
                if buffers[name].address not in there:
                    uploads += self._transfer(buffers[name].rows(row, batch), arrays[name][row : row + batch], up=True)
                    there.add(buffers[name].address)
            for name in (t.name for t in spec.outputs if t.name in buffers):
                there.add(buffers[name].address)
                if name != "hidden" or len(graphs) == 1:
                    downloads += self._transfer(
                        buffers[name].rows(row, batch), arrays[name][row : row + batch], up=False
                    )
        return uploads, downloads

    def _transfer(self, buffer: Buffer, array: Array, up: bool) -> list[Call]:
        """The copy between an array and its buffer: none where they are the same memory."""
        host = Buffer.of(array)
        if host.address == buffer.address:
            return []
        return [self.device.copy(buffer.whole, host.whole) if up else self.device.copy(host.whole, buffer.whole)]

    def _just_spoken(self, batch: int) -> Iterator[Call]:
        """Copies of the audio tokens that go to the decoder in the frame that samples them, all slots' columns at once.

        They are those of the longest delay: every other stream's were sampled a frame or more ago, see DelayRing.
        """
        codes = self._buffers["mimi_decode"]["codes"].rows(0, batch)  # [B, 8]
        tokens = self._buffers["depth"]["audio_tokens"].rows(0, batch)  # [B, K]
        delays = self._config.delays[1 : 1 + CODEBOOKS]
        for last, streams in groupby(range(CODEBOOKS), lambda stream: delays[stream] == self._config.max_delay):
            if last:
                first, *others = streams
                yield self.device.copy(codes.part(1, first, 1 + len(others)), tokens.part(1, first, 1 + len(others)))

    # Rings.

    def _reach(self, row: int, batch: int, steps: int) -> None:
        """Make room for `steps` steps of rows row, ..., row + batch - 1, from their positions on."""
        written = self._written[row : row + batch]
        np.maximum(written, self.position[row : row + batch] + steps, out=written)
        self._make_room()

    def _make_room(self) -> None:
        needed = self._length_for(int(self._written.max()))
        if needed > self._ring_length:
            self._resize_rings(needed)

    def _length_for(self, steps: int) -> int:
        """The shortest rings that can hold so many steps."""
        # One entry is always left free: a full ring hides its oldest, which the reference does at its capacity only.
        return next((length for length in self._ring_lengths if length > steps), self._ring_lengths[-1])

    def _resize_rings(self, length: int) -> None:
        in_use = {row: int(steps) for row, steps in enumerate(self._written) if steps}
        # Calls hold the rings that they were bound to, each as much memory as its successor: they go first.
        for calls in (self._prepared, self._calls):
            for key in [key for key in calls if "temporal" in key[0]]:
                del calls[key]
        self._bound = {key: call for key, call in self._bound.items() if key[0] != "temporal"}
        self.engines["temporal"].resize({"C": length}, in_use)
        self._ring_length = length

    # Buffers.

    def _make_buffers(self, logits: bool) -> dict[str, dict[str, Buffer]]:
        """Every graph's inputs and outputs; what one graph takes from another, or two from the host, is one buffer."""
        shared = {"depth": ("temporal", ("hidden", "text_token", *NOISE)), "mimi_decode": ("mimi_encode", ("active",))}
        made = dict[str, dict[str, Buffer]]()
        for graph, engine in self.engines.items():
            origin, names = shared.get(graph, ("", ()))
            wanted = [t for t in _exchanged(engine) if logits or t.name not in LOGITS]
            made[graph] = {t.name: made[origin][t.name] if t.name in names else self._zeros(t) for t in wanted}
        return made

    def _make_arrays(self) -> dict[str, dict[str, Array]]:
        """The buffers' arrays: zeros, or ones where a graph divides by them, valid values for a slot that is not in use."""
        arrays = {b.address: self.device.staging(b) for made in self._buffers.values() for b in made.values()}
        for made in self._buffers.values():
            for name, buffer in made.items():
                if name == "noise" or name.endswith("temperature"):
                    arrays[buffer.address][...] = 1
        return {graph: {name: arrays[b.address] for name, b in made.items()} for graph, made in self._buffers.items()}

    def _zeros(self, tensor: TensorSpec, steps: int = 0) -> Buffer:
        """A buffer [S, ...], or [steps, ...] of one slot's steps."""
        if steps:
            return self.device.zeros((steps, *fixed_shape(tensor.shape[2:], {})), tensor.dtype)
        return self.device.zeros(fixed_shape(tensor.shape, {"B": self.slots, "T": 1}), tensor.dtype)


def ring_lengths(capacity: int) -> list[int]:
    """Two an octave, so that at most a third of what a step reads is not needed: 128, 192, 256, 384, ..., `capacity`."""
    octaves = [SHORTEST_RING << i for i in range(max(1, capacity).bit_length())]
    return [n for octave in octaves for n in (octave, octave * 3 // 2) if n < capacity] + [capacity]


def _exchanged(engine: Engine) -> tuple[TensorSpec, ...]:
    return engine.spec.inputs + engine.spec.outputs


def _time(seconds: dict[str, float], graph: str, call: Call) -> None:
    began = time.perf_counter()
    call()
    seconds[graph] += time.perf_counter() - began
