"""Runs the graphs of a frame in order: each list of graphs becomes one prepared call, which a GPU captures as a CUDA graph.

Called by `runtime.stages`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Tokens
from pplex.runtime.buffers import FrameBuffers
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.device import Call, Device
from pplex.runtime.engine import Engine, Executor, in_turn
from pplex.runtime.pipeline import GRAPH_NAMES

Key = tuple[tuple[str, ...], int, int]  # graphs, batch, first row

DEVICE = "device"  # in `FrameRunner.seconds`: all work of a device that cannot time single graphs


class FrameRunner:
    """Runs graphs over the buffers of a batch of slots: uploads, the graphs in their order, downloads.

    A call is prepared for its first run, and captured for its second run.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        engines: Mapping[str, Engine],
        device: Device,
        buffers: FrameBuffers,
        delays: tuple[int, ...],
    ):
        self._executors, self._engines, self._device, self._buffers = executors, engines, device, buffers
        self._agent_delays, self._user_delays = delays[1 : 1 + CODEBOOKS], delays[1 + CODEBOOKS :]
        self._late = max(1, *delays)
        self.seconds = dict.fromkeys([DEVICE] if device.captures else GRAPH_NAMES, 0.0)  # spent in calls until now
        self._bound: dict[tuple[str, int], Call] = {}
        self._prepared: dict[Key, Call] = {}
        self._calls: dict[Key, Call] = {}

    def run(self, graphs: tuple[str, ...], batch: int, row: int = 0) -> None:
        """Run graphs for slots row, ..., row + batch - 1. More than one graph runs from row 0 only."""
        began = time.perf_counter()
        self._call((graphs, batch, row))()
        self._device.synchronize()
        if DEVICE in self.seconds:
            self.seconds[DEVICE] += time.perf_counter() - began

    def run_forced(self, row: int, codes: Tokens, embedding: npt.NDArray[np.float32]) -> None:
        """Run the temporal transformer over forced steps of one slot: codes [T, 17], embedding [T, dim]."""
        buffers, uploads = self._buffers.forced_steps(row, codes, embedding)
        in_turn([*uploads, self._engines["temporal"].bind(buffers, row, 1)])
        self._device.synchronize()

    def parts(self, batch: int) -> dict[str, Call]:
        """For measurements: the graphs of a frame of slots 0, ..., batch - 1 in order, and for each a call that enqueues it.

        The host's arrays are uploaded now. The graphs' outputs stay on the device.
        """
        in_turn(self._buffers.transfers(GRAPH_NAMES, 0, batch)[0])
        calls = {graph: partial(in_turn, self._work(graph, batch, GRAPH_NAMES)) for graph in GRAPH_NAMES}
        in_turn(list(calls.values()))  # libraries initialise in a first call
        self._device.synchronize()
        return {
            graph: self._device.capture(call) if self._device.captures and self._executors[graph].capturable else call
            for graph, call in calls.items()
        }

    def drop_calls(self, graph: str) -> None:
        """Drop every call that runs a graph, and with it the memory that the call is bound to."""
        for calls in (self._prepared, self._calls):
            for key in [key for key in calls if graph in key[0]]:
                del calls[key]
        self._bound = {key: call for key, call in self._bound.items() if key[0] != graph}

    def _call(self, key: Key) -> Call:
        """The prepared call the first time, because libraries initialise in it; after that the captured call."""
        if key not in self._calls:
            if key not in self._prepared:
                self._prepared[key] = self._prepare(*key)
                return self._prepared[key]
            self._calls[key] = self._captured(key[0], self._prepared.pop(key))
        return self._calls[key]

    def _captured(self, graphs: tuple[str, ...], call: Call) -> Call:
        """A frame's call as one CUDA graph. Single graphs are not captured, because they run too rarely."""
        worthwhile = self._device.captures and len(graphs) > 1
        return self._device.capture(call) if worthwhile and all(self._executors[g].capturable for g in graphs) else call

    def _prepare(self, graphs: tuple[str, ...], batch: int, row: int) -> Call:
        uploads, downloads = self._buffers.transfers(graphs, row, batch)
        if len(graphs) == 1:
            return partial(in_turn, [*uploads, self._bind(graphs[0], batch, row, False), *downloads])
        work = [call for graph in graphs for call in self._work(graph, batch, graphs)]
        return partial(in_turn, [*uploads, *work, *downloads])

    def _work(self, graph: str, batch: int, graphs: tuple[str, ...]) -> list[Call]:
        """A graph of a frame, and the copies of its outputs to later graphs of the frame."""
        passed_on = list[Call]()
        if graph == "mimi_encode":
            passed_on += self._just_heard(batch)
        elif graph == "depth" and "mimi_decode" in graphs:
            passed_on += self._just_sampled(batch)
        return [self._bind_frame(graph, batch), *passed_on]

    def _bind_frame(self, graph: str, batch: int) -> Call:
        """A graph's call in a frame. Whole frames and frames without the codec share it."""
        if (graph, batch) not in self._bound:
            self._bound[graph, batch] = self._bind(graph, batch, 0, True)
        return self._bound[graph, batch]

    def _bind(self, graph: str, batch: int, row: int, repeated: bool) -> Call:
        call = self._engines[graph].bind(self._buffers.rows(graph, row, batch), row, batch, repeated)
        # Not a method: a call that refers to its runner would keep it and its engines in memory.
        return call if DEVICE in self.seconds else partial(_time, self.seconds, graph, call)

    def _just_heard(self, batch: int) -> Iterator[Call]:
        """Copy the user's codes to the temporal transformer in the same frame that encodes them.

        These are the streams without a delay. The model reads other streams in later frames: see DelayRing.
        """
        heard = self._buffers.by_graph["mimi_encode"]["codes"].rows(0, batch)  # [B, 8]
        codes = self._buffers.by_graph["temporal"]["codes"].rows(0, batch)  # [B, 1, 17]
        for first, count in _runs(delay == 0 for delay in self._user_delays):
            yield self._device.copy(codes.part(2, 1 + CODEBOOKS + first, count), heard.part(1, first, count))

    def _just_sampled(self, batch: int) -> Iterator[Call]:
        """Copy audio tokens to the decoder in the same frame that samples them, for all slots at once.

        These are the streams with the longest delay. Other streams were sampled a frame or more ago: see DelayRing.
        """
        codes = self._buffers.by_graph["mimi_decode"]["codes"].rows(0, batch)  # [B, 8]
        tokens = self._buffers.by_graph["depth"]["audio_tokens"].rows(0, batch)  # [B, K]
        for first, count in _runs(delay == self._late for delay in self._agent_delays):
            yield self._device.copy(codes.part(1, first, count), tokens.part(1, first, count))


def _runs(wanted: Iterable[bool]) -> Iterator[tuple[int, int]]:
    """The first index and the length of each run of wanted items."""
    for is_wanted, items in groupby(enumerate(wanted), lambda item: item[1]):
        if is_wanted:
            run = [i for i, _ in items]
            yield run[0], len(run)


def _time(seconds: dict[str, float], graph: str, call: Call) -> None:
    began = time.perf_counter()
    call()
    seconds[graph] += time.perf_counter() - began
