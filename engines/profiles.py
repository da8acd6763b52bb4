"""The optimization profiles of an engine: which sizes its kernels are made for. Called by `engines.compile`.

An engine chooses its kernels for each profile. If B is not fixed in a profile, TensorRT-RTX writes a ring with a kernel
whose grid covers the whole ring instead of one entry: at the released size 384,000 blocks instead of 128 for 8 slots, in
each layer. So each usual batch size has a profile of its own. The runtime takes the narrowest profile that allows a call.
"""

from collections.abc import Iterator, Mapping

from pplex.runtime.engine import fixed_shape
from pplex.runtime.graphs import MAX_STEPS, GraphSpec, batch_sizes

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # by input: the smallest, the most frequent and the largest shape

# A profile with only one row needs matrices in another layout, and the engine stores them a second time. With at least two
# slots in every profile, each matrix is stored once. So a single conversation takes a batch of 2, if the engine has as many.
MIN_PROFILE_SLOTS = 2


def profiles(spec: GraphSpec, capacity: int, slots: int) -> list[Profile]:
    """The profiles of a graph whose engine takes up to `slots` slots; the first one allows one step of any B."""
    return [_profile(spec, capacity, batches, steps) for batches, steps in _sizes(spec, slots)]


def _sizes(spec: GraphSpec, slots: int) -> Iterator[tuple[Shape, Shape]]:
    """For each profile: the smallest, the most frequent and the largest B, and T."""
    yield (1, 1, max(slots, MIN_PROFILE_SLOTS)), (1, 1, 1)
    if any("T" in tensor.shape for tensor in spec.inputs):
        # Scratch memory grows with the largest B times T. The whole batch would need gigabytes, and is never primed at once.
        yield (1, 1, MIN_PROFILE_SLOTS), (2, MAX_STEPS // 4, MAX_STEPS)
    if slots > 1 and any(state.ring for state in spec.state):
        yield from ((3 * (batch,), (1, 1, 1)) for batch in batch_sizes(slots, compiled=True))


def _profile(spec: GraphSpec, capacity: int, batches: Shape, steps: Shape) -> Profile:
    sizes = [{"B": batch, "T": step, "C": capacity} for batch, step in zip(batches, steps, strict=True)]
    return {tensor.name: tuple(fixed_shape(tensor.shape, one) for one in sizes) for tensor in spec.all_inputs}  # type: ignore[misc]
