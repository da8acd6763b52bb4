"""Orders, rebuilds and saved sessions on devices with a memory and a queue of their own equal those on the host."""

from collections.abc import Callable, Iterator

import pytest
from conversations import PCM, PERSONA

from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime


def steered(runtime: Runtime) -> Iterator[list[int]]:
    """The tokens of two sessions that get every kind of order."""
    first, second = (
        runtime.open("NATF0", PERSONA, seed, greeting=words) for seed, words in ((1, "good night"), (2, None))
    )
    for frame in range(130):
        match frame:
            case 4:
                second.say("stop here my friend")
            case 12:
                first.hold()
            case 20:
                first.release()
                second.rewind(0.4)
            case 30:
                first.rebuild("it is night", keep_seconds=0)
            case 40:
                second.rewind(0.8)
            case 60:
                snapshot = second.snapshot()
                second.close()
                second = runtime.open(snapshot=snapshot)
        replies = runtime.step({first: PCM[0, frame], second: PCM[1, frame]})
        yield from (replies[session].tokens.tolist() for session in (first, second))
    for session in (first, second):
        session.close()


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> list[list[int]]:
    return list(steered(Runtime(tiny_bundle, 2, threads=1, batches=[2], device="cpu", spare=True)))


def test_orders_have_the_same_effect_on_every_device(
    tiny_bundle: Bundle, place: Callable[[Bundle], tuple[Bundle, Backend]], expected: list[list[int]]
) -> None:
    bundle, backend = place(tiny_bundle)
    assert list(steered(Runtime(bundle, 2, threads=1, batches=[2], device=backend, spare=True))) == expected
    assert len({tuple(tokens) for tokens in expected}) > 200
