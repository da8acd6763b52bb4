"""A graph with its state: row b of every buffer belongs to slot b, on every library and device.

Called by `bench`, `runtime` and `validate`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from pplex.runtime.arrays import Array
from pplex.runtime.device import Buffer, Call, Device
from pplex.runtime.graphs import Dim, GraphSpec, StateSpec
from pplex.runtime.precision import storage_dtype


class Executor(Protocol):
    """One graph that a library has made ready to run."""

    spec: GraphSpec
    alignment: int  # every address must be a multiple of this number of bytes
    fixed_rings: bool  # whether rings must have their full length from the start
    one_thread: bool  # whether only the thread that loaded it may call it

    @property
    def capturable(self) -> bool:
        """Whether a device can capture the calls that are bound now. Each must have run once."""

    def bind(self, tensors: Mapping[str, Buffer], repeated: bool) -> Call:
        """Prepare a call that enqueues the graph on the device's queue.

        `tensors` has every input and every state, past and present, by name; outputs left out are not fetched.
        `repeated`: the call runs in every frame and gets resources of its own.
        """

    def save_cache(self) -> None:
        """Save the kernels that the first calls compiled, for the next load."""


class Engine:
    """An executor and the state of `slots` slots. `sizes` gives the length of the state's symbolic axes."""

    def __init__(self, executor: Executor, device: Device, slots: int, sizes: Mapping[str, int]):
        self.spec, self._executor, self._device = executor.spec, executor, device
        shapes = {s.name: (slots, *fixed_shape(s.shape[1:], sizes)) for s in self.spec.state}
        self.state = {s.name: device.zeros(shapes[s.name], s.dtype) for s in self.spec.state}
        # Several nodes read a conv tail or a position, and some may run after the writer: see StateSpec.
        self._next = {s.name: device.zeros(shapes[s.name], s.dtype) for s in self.spec.state if not s.ring}
        self._stand_ins: dict[tuple[str, tuple[int, ...]], Buffer] = {}

    def resize(self, sizes: Mapping[str, int], written: Mapping[int, int]) -> None:
        """Change the length of the rings. Calls that were bound before must not run again.

        `written`: the number of entries to keep in each row, if they fit. Rows that are not named are empty.
        """
        slots = self.state[self._rings()[0].name].shape[0]
        # All rings are allocated before the first is replaced, so nothing changes if memory runs out.
        longer = {s.name: self._device.zeros((slots, *fixed_shape(s.shape[1:], sizes)), s.dtype) for s in self._rings()}
        for name in list(longer):
            old, new = self.state[name], longer.pop(name)
            for row, steps in written.items():
                kept = min(steps, old.shape[2], new.shape[2])
                self._device.copy(new.rows(row, 1).part(2, 0, kept), old.rows(row, 1).part(2, 0, kept))()
            self._device.synchronize()  # before the old memory is freed
            self.state[name] = new
        self._stand_ins.clear()

    def bind(self, tensors: Mapping[str, Buffer], row: int, batch: int, repeated: bool = False) -> Call:
        """Prepare a call over rows row, ..., row + batch - 1.

        `tensors` are buffers of the device by input or output name, [batch, ...] each; every call reads and writes them in
        place. `repeated` as in `Executor.bind`.
        """
        bound, carried = dict(tensors), []
        for state in self.spec.state:
            past = self.state[state.name].rows(row, batch)
            present = past if state.ring else self._next[state.name].rows(row, batch)
            bound |= {state.past: past, state.present: present}
            if not state.ring:
                carried.append(self._device.copy(past.whole, present.whole))
        for tensor in (*self.spec.all_inputs, *self.spec.all_outputs):
            if tensor.name in bound or tensor in self.spec.inputs:
                buffer = bound[tensor.name]
                assert (buffer.dtype, buffer.shape[0]) == (tensor.dtype, batch), (tensor, buffer)
        aligned, before, after = self._aligned(bound)
        work = [*before, self._executor.bind(aligned, repeated), *after, *carried]

        # The executor holds only addresses, so the closure must keep their memory allocated.
        def call(_keep: Mapping[str, Buffer] = bound) -> None:
            in_turn(work)

        return call

    def _aligned(self, bound: Mapping[str, Buffer]) -> tuple[dict[str, Buffer], list[Call], list[Call]]:
        """The same tensors at aligned addresses, and for moved tensors the copies before and after the call.

        Allocations and the start of every batch are aligned. A later slot's row of a small tensor may be unaligned.
        """
        aligned, before, after = dict(bound), list[Call](), list[Call]()
        alias = {state.present: state.past for state in self.spec.state if state.ring}
        inputs = {tensor.name for tensor in self.spec.all_inputs}
        for name, buffer in bound.items():
            if buffer.address % self._executor.alignment == 0:
                continue
            key = alias.get(name, name), buffer.shape
            if key not in self._stand_ins:
                self._stand_ins[key] = self._device.zeros(buffer.shape, buffer.dtype)
            aligned[name] = self._stand_ins[key]
            if name in inputs:
                before.append(self._device.copy(aligned[name].whole, buffer.whole))
            else:
                after.append(self._device.copy(buffer.whole, aligned[name].whole))
        return aligned, before, after

    def reset(self, row: int, steps: int) -> None:
        """Clear a slot. `steps` is the largest number of ring entries that it can have written."""
        # A masked entry has weight zero, but zero times infinity is NaN. So written entries are cleared.
        for state in self.spec.state:
            buffer = self.state[state.name].rows(row, 1)
            self._device.clear(buffer.part(2, 0, min(steps, buffer.shape[2])) if state.ring else buffer.whole)

    def save(self, row: int, steps: int) -> dict[str, Array]:
        """A copy of the first `steps` ring entries of a slot, [H, steps, D] host arrays by state name."""
        saved = {}
        for state in self._rings():
            ring = self.state[state.name].rows(row, 1)
            _, heads, capacity, dim = ring.shape
            kept = min(steps, capacity)
            saved[state.name] = np.empty((heads, kept, dim), storage_dtype(state.dtype))
            self._device.copy(Buffer.of(saved[state.name]).part(1, 0, kept), ring.part(2, 0, kept))()
        self._device.synchronize()
        return saved

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        for state in self._rings():
            kept = saved[state.name].shape[1]
            ring = self.state[state.name].rows(row, 1)
            self._device.copy(ring.part(2, 0, kept), Buffer.of(saved[state.name]).part(1, 0, kept))()
        self._device.synchronize()

    def copy(self, source: int, target: int, steps: int) -> None:
        """Copy the first `steps` ring entries of slot `source` to slot `target`."""
        for state in self._rings():
            old, new = (self.state[state.name].rows(row, 1) for row in (source, target))
            self._device.copy(new.part(2, 0, steps), old.part(2, 0, steps))()
        self._device.synchronize()

    def truncate(self, row: int, steps: int, written: int) -> None:
        """Clear the ring entries of a slot after the first `steps`, of `written`."""
        for state in self._rings() if written > steps else ():
            self._device.clear(self.state[state.name].rows(row, 1).part(2, steps, written - steps))

    def save_state(self, row: int) -> dict[str, Array]:
        """A copy of all state of a slot, host arrays by state name."""
        saved = {}
        for state in self.spec.state:
            saved[state.name] = np.empty(self.state[state.name].shape[1:], storage_dtype(state.dtype))
            self._device.copy(Buffer.of(saved[state.name]).whole, self.state[state.name].rows(row, 1).whole)()
        self._device.synchronize()
        return saved

    def restore_state(self, row: int, saved: Mapping[str, Array]) -> None:
        """Write back what `save_state` gave, into any slot."""
        for state in self.spec.state:
            self._device.copy(self.state[state.name].rows(row, 1).whole, Buffer.of(saved[state.name]).whole)()
        self._device.synchronize()

    def _rings(self) -> list[StateSpec]:
        return [state for state in self.spec.state if state.ring]


def fixed_shape(dims: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with its symbolic axes replaced by `sizes`."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in dims)


def in_turn(calls: Sequence[Call]) -> None:
    for call in calls:
        call()
