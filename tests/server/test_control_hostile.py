"""Hostile orders, floods of them, and clients that leave in the middle: the server goes on, and nothing leaks."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from bystander import attacked
from callers import call, dial, frame, run, speech
from serving import Running, Serve
from steering import answers, done, ordered, refused, send

TEXT = "good answers for you"


@pytest.fixture(scope="module")
def patient(serve: Serve) -> Iterator[Running]:
    """A server with 4 slots that takes many orders, and keeps few snapshots."""
    limits = {"orders": 1000, "memory_orders": 1000, "snapshots": 2, "snapshot_s": 1.5, "resume_s": 0.3}
    with serve(limits=limits) as running:
        yield running


UNREADABLE = [
    b"",
    b"\xff" * 100,
    b"{",
    b'{"type": "say", "text": NaN}',
    b"[" * 10_000,
    b'{"a":' * 10_000,
    b'{"type": "say", "text": "' + b"a " * 16_000 + b'"}',
    b'{"type": "say", "text": "' + b"word " * 200_000 + b'"}',  # 1 MB
    b'{"type": "hold", "type": "hold"}',
    b'{"type": "rm"}',
    b'{"type": "rewind", "seconds": 1e308}',
    b'{"type": "rewind", "seconds": ' + b"9" * 4000 + b"}",
    b'{"type": "say", "text": {"type": "say"}}',
]


def test_an_order_that_cannot_be_read_is_refused_and_the_conversation_goes_on(
    target: Running, unharmed: np.ndarray
) -> None:
    async def attack() -> None:
        async with call(target.url, control="1") as caller:
            await caller.handshake()
            for payload in UNREADABLE:
                assert len(await refused(caller, payload)) < 500
            await done(caller, "hold")
            assert len(await caller.talk(speech(3))) == 3

    attacked(target, unharmed, attack)


def test_a_flood_of_orders_is_refused_and_a_worse_one_ends_the_connection(
    target: Running, unharmed: np.ndarray
) -> None:
    """The second flood is of orders that would take long."""

    async def attack() -> None:
        async with call(target.url, control="1") as caller:
            await caller.handshake()
            for _ in range(60):
                await send(caller, {"type": "hold"})
            await caller.until(lambda: len(answers(caller)) == 60)
            reasons = [each["reason"] for each in answers(caller) if each["type"] == "refused"]
            assert len(reasons) >= 30 and any("orders a second" in reason for reason in reasons)
            await caller.talk(speech(2))
            with suppress(ConnectionError):
                for _ in range(3000):
                    await send(caller, {"type": "release"})
            assert await caller.closed() in (1008, 1006)

    async def heavy() -> None:
        async with call(target.url, control="1") as caller:
            await caller.handshake()
            for _ in range(8):
                await send(caller, {"type": "snapshot"})
            await caller.until(lambda: len(answers(caller)) == 8)
            reasons = [each.get("reason", "") for each in answers(caller)]
            assert reasons.count("") == 4 and any("of rebuild, snapshot, rewind" in reason for reason in reasons)

    attacked(target, unharmed, attack)
    attacked(target, unharmed, heavy)


def test_only_an_order_may_be_above_64_kib(target: Running, unharmed: np.ndarray) -> None:
    async def attack() -> None:
        for message in (b"\1" + bytes(70_000), b"\2" + bytes(70_000), b"\4" + bytes(3 << 20)):
            async with call(target.url, control="1") as caller:
                await caller.handshake()
                with suppress(ConnectionError):
                    await caller.ws.send_bytes(message)
                assert await caller.closed() in (1009, 1006)

    attacked(target, unharmed, attack)


def test_our_own_mistake_in_an_order_ends_that_conversation_only(serve: Serve) -> None:
    prelude = "from pplex.runtime.orders import Orders\nOrders.hold = lambda self: 1 // 0\n"

    async def visit(url: str) -> None:
        async with call(url, control="1") as one, call(url, control="1") as other:
            await one.handshake()
            await other.handshake()
            assert "has a defect" in await refused(one, {"type": "hold"})
            assert await one.closed() == 1011
            await done(other, "release")
            assert len(await other.talk(speech(2))) == 2

    with serve("--slots", "2", "--allow", "control", prelude=prelude) as server:
        run(visit(server.url))
        assert [event["event"] for event in server.events() if event["level"] == "error"] == ["an order failed"]
        server.wait_for(lambda: server.state()["used"] == 0)


def test_a_client_that_orders_and_does_not_read_is_dropped(patient: Running) -> None:
    """It reads nothing: the answers that wait for it are bounded."""
    before = patient.metric('pplex_partings_total{cause="slow"}')
    order = frame(b"\4" + json.dumps({"type": "x" * 50, "id": "y" * 64}).encode())

    async def attack() -> None:
        async with dial(patient.port, "audio=f32&control=1", receive_buffer=2048) as (_, writer):
            for _ in range(120):
                writer.write(order * 20)
                await asyncio.sleep(0.1)
                if writer.is_closing():
                    break

    run(attack())
    assert patient.metric('pplex_partings_total{cause="slow"}') > before
    patient.wait_for(lambda: patient.state()["used"] == 0)


ORDERS = [
    {"type": "say", "text": f"{TEXT} and {TEXT}"},
    {"type": "hold"},
    {"type": "release"},
    {"type": "rebuild", "persona": "You stand in a restaurant and are good in questions."},
    {"type": "snapshot"},
    {"type": "rewind", "seconds": 0.3},
]


@pytest.mark.parametrize("order", ORDERS, ids=[str(order["type"]) for order in ORDERS])
def test_a_client_that_leaves_in_the_middle_of_an_order_leaves_nothing(
    patient: Running, order: dict[str, object]
) -> None:
    """Closed and cut, on all slots: after that every slot is free, and the spare one too."""

    async def leave(cut: bool, pause_s: float) -> None:
        async with call(patient.url, control="1") as caller:
            await (await caller.handshake()).say(*speech(6))
            await caller.replies(4)
            for _ in range(3):
                await send(caller, order)
            await asyncio.sleep(pause_s)
            if cut:
                caller.drop()

    async def visit() -> None:
        for pause_s in (0.0, 0.02):
            await asyncio.gather(*(leave(bool(i % 2), pause_s) for i in range(4)))
            await asyncio.to_thread(patient.wait_for, lambda: patient.state()["used"] == 0)
        async with call(patient.url, control="1") as caller:
            await (await caller.handshake()).talk(speech(5))
            await done(caller, "rebuild", facts="The salad is good.")
            await done(caller, "rewind", seconds=0.2)

    run(visit())
    patient.wait_for(lambda: patient.state()["used"] == 0)
    assert not [event for event in patient.events() if event["level"] == "error"]


def test_snapshots_are_bounded_and_dropped(patient: Running) -> None:
    async def visit() -> list[str]:
        async with call(patient.url, control="1") as caller:
            await (await caller.handshake()).talk(speech(3))
            keys = [(await done(caller, "snapshot"))["key"] for _ in range(3)]
            assert patient.metric("pplex_snapshots") == 2
            status = [patient.get(f"/api/chat?control=1&snapshot={key}")[0] for key in keys]
            assert status == [404, 426, 426], "the oldest was dropped; the others only lack a WebSocket"
            return keys

    (_, key, _) = run(visit())
    patient.wait_for(lambda: patient.metric("pplex_snapshots") == 0)
    assert patient.metric("pplex_snapshot_bytes") == 0
    assert "was dropped" in patient.get(f"/api/chat?snapshot={key}")[1]


def test_memory_does_not_grow_with_orders(patient: Running) -> None:
    async def visit(rounds: int) -> None:
        for i in range(rounds):
            async with call(patient.url, control="1", seed="1") as caller:
                await (await caller.handshake()).say(*speech(2))
                await caller.replies(2)
                for order in (*ORDERS, {"type": "say", "text": TEXT, "interrupt": True}, {"type": "snapshot"}):
                    await ordered(caller, order)
                if i % 2:
                    caller.drop()
            await asyncio.to_thread(patient.wait_for, lambda: patient.state()["used"] == 0)

    run(visit(5))
    before = patient.metric("process_resident_memory_bytes")
    run(visit(10))
    assert patient.metric("process_resident_memory_bytes") - before < 16 << 20


def test_a_snapshot_larger_than_all_may_be_is_refused(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url, control="1") as caller:
            await caller.handshake()
            assert "this server keeps at most 1,000" in await refused(caller, {"type": "snapshot", "id": "s"})
            assert answers(caller)[-1]["id"] == "s"

    with serve(limits={"snapshot_bytes": 1000}) as server:
        run(visit(server.url))
        assert server.metric("pplex_snapshots") == 0
