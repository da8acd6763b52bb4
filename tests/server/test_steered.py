"""Orders as the scheduler follows them: what is done at once, and what in chunks."""

import pytest
from conversations import PCM, small_runtime, talk

from pplex.runtime.bundle import Bundle
from pplex.server.orders import Order
from pplex.server.steered import Steered


@pytest.mark.parametrize("name, arguments", [("rebuild", {}), ("rewind", {"seconds": 2})])
def test_a_memory_is_computed_in_chunks_between_the_frames_of_others(
    tiny_bundle: Bundle, name: str, arguments: dict[str, float]
) -> None:
    runtime = small_runtime(tiny_bundle, 2, spare=True, prefix_bytes=0)  # the prompt is primed again
    with runtime.open("NATF0", "", seed=7) as session, runtime.open("NATF0", "", seed=8) as other:
        talk(session, PCM[0, :120])  # past the end of the ring
        chunks = 0
        for _ in Steered(lambda _: None).follow(session, Order(name, None, arguments)):
            runtime.step({session: PCM[0, chunks], other: PCM[1, chunks]})
            chunks += 1
        assert chunks >= 2  # the first one is the wait for its turn
