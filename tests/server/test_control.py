"""Orders to a running conversation do what those of the runtime do, and change no other conversation."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from answers import expected
from callers import Caller, call, run, speech
from serving import Running, Serve
from steering import answers, chat, done, ordered, refused, said, send

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime

TEXT = "good answers for you"  # words that the tiny model's tokenizer can write


@pytest.fixture(scope="module")
def steered(serve: Serve) -> Iterator[Running]:
    """A server whose clients may control their conversations, with one batch size."""
    with serve("--slots", "4", "--allow", "control", "--one-batch-size", "--resume-seconds", "2") as running:
        yield running


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle) -> Runtime:
    return Runtime(tiny_bundle, slots=4, threads=1, batches=[4], spare=True)


def test_a_text_is_said_as_the_runtime_says_it(steered: Running, reference: Runtime) -> None:
    user = speech(40)

    async def visit() -> Caller:
        async with call(steered.url, control="1", seed="5") as caller:
            assert (await caller.handshake()).session["frame"] == 0
            await caller.talk(user[:4])
            assert await done(caller, "say", id="a1", text=TEXT) == {
                "type": "done", "order": "say", "id": "a1", "frame": 5, "words": 4,
            }  # fmt: skip
            await caller.talk(user[4:])
            return caller

    caller = run(visit())
    with reference.open("NATF0", "", 5) as session:
        replies = [session.step(frame) for frame in user[:4]]
        saying = session.say(TEXT)
        replies += [session.step(frame) for frame in user[4:]]
    assert np.array_equal(caller.heard(), np.stack([reply.pcm for reply in replies]))
    assert caller.text == "".join(reply.text for reply in replies) and f" {TEXT}" in caller.text
    assert said(caller, "a1") == [("speaking", saying.began), ("done", saying.ended)]
    assert caller.metadata("said")[-1]["words"] == 4


def test_no_word_is_said_after_hold(steered: Running) -> None:
    async def visit() -> None:
        async with call(steered.url, control="1", seed="3") as caller:
            await (await caller.handshake()).talk(speech(4))
            await done(caller, "say", id="long", text=f"{TEXT} and your friends and the ones in the salad")
            await chat(caller, lambda: said(caller, "long"))
            held = await done(caller, "hold")
            await caller.until(lambda: said(caller, "long")[1:] == [("cut", held["frame"])])
            await caller.talk(speech(3))  # the frame whose text was already sampled is among them
            text = caller.text
            await caller.talk(speech(25))
            assert caller.text == text
            assert (await done(caller, "release"))["frame"] == held["frame"] + 28
            await chat(caller, lambda: caller.text != text)

    run(visit())


def test_a_fork_continues_like_its_original(steered: Running) -> None:
    before, after = speech(8), speech(12, seed=1)

    async def visit() -> tuple[Caller, Caller]:
        async with call(steered.url, control="1", text_prompt="You go on.", voice_prompt="NATM1", seed="7") as original:
            await (await original.handshake()).talk(before)
            kept = await done(original, "snapshot")
            assert kept["frame"] == 8 and kept["bytes"] > 10_000 and kept["seconds"] == 600
            assert steered.metric("pplex_snapshot_bytes") >= kept["bytes"]
            await original.talk(after)
            async with call(steered.url, control="1", snapshot=kept["key"]) as fork:
                await (await fork.handshake()).talk(after)
                return original, fork

    original, fork = run(visit())
    assert np.array_equal(fork.heard(), original.heard()[8:])
    assert (fork.session["voice"], fork.session["seed"], fork.session["frame"]) == ("NATM1", 7, 8)
    assert original.text.endswith(fork.text)


def test_a_greeting_comes_first(steered: Running, reference: Runtime) -> None:
    user = speech(30)

    async def visit() -> Caller:
        async with call(steered.url, greeting=f"{TEXT} 1", seed="9") as caller:
            await (await caller.handshake()).talk(user)
            return caller

    caller = run(visit())
    with reference.open("NATF0", "", 9, greeting=f"{TEXT} one") as session:
        replies = [session.step(frame) for frame in user]
    assert np.array_equal(caller.heard(), np.stack([reply.pcm for reply in replies]))
    assert caller.text.startswith(f" {TEXT} one")
    status, reason = steered.get("/api/chat?greeting=%23%23")
    assert status == 400 and "can be said in several ways" in reason


def test_other_conversations_do_not_change(steered: Running, reference: Runtime) -> None:
    """Every kind of order at work beside a neighbour, which hears what it hears alone."""
    user = speech(45, seed=2)

    async def order() -> list[str]:
        async with call(steered.url, control="1", seed="1") as caller:
            await (await caller.handshake()).talk(speech(10))
            talking = asyncio.create_task(caller.talk(speech(30)))
            for name, arguments in (
                ("rebuild", {"persona": "You are in a restaurant."}),
                ("say", {"text": TEXT, "gap": 2}),
                ("rewind", {"seconds": 0.5}),
                ("rebuild", {"facts": "The salad is good.", "voice": "NATM1.pt"}),
                ("snapshot", {}),
                ("hold", {}),
                ("release", {}),
            ):
                await done(caller, name, **arguments)
                await asyncio.sleep(0.2)
            await talking
            return [each["order"] for each in answers(caller)]

    async def visit() -> tuple[Caller, list[str]]:
        async with call(steered.url, text_prompt="A neighbour.", seed="77") as neighbour:
            ordering = asyncio.create_task(order())
            await (await neighbour.handshake()).talk(user)
            return neighbour, await ordering

    neighbour, followed = run(visit())
    assert len(followed) == 7
    pcm, text = expected(reference, user, "NATF0", "A neighbour.", 77)
    assert np.array_equal(neighbour.heard(), pcm) and neighbour.text == text
    assert steered.metric('pplex_orders_total{order="rebuild",result="done"}') >= 2
    assert steered.metric('pplex_rebuilds_total{cause="order"}') >= 2


def test_rebuild_and_rewind_do_what_the_runtime_does(steered: Running, reference: Runtime) -> None:
    user = speech(36)

    async def visit() -> Caller:
        async with call(steered.url, control="1", seed="8") as caller:
            await (await caller.handshake()).talk(user[:12])
            assert (await done(caller, "rebuild", persona="You are in a restaurant.", voice="VARF2.pt"))["frame"] == 13
            await caller.talk(user[12:24])
            assert (await done(caller, "rewind", seconds=0.8))["frames"] == 10
            await caller.talk(user[24:])
            caller.drop()
        async with call(steered.url, control="1", resume=caller.session["resume"]) as again:
            assert (await again.handshake()).session["voice"] == "VARF2"
            return caller

    caller = run(visit())
    with reference.open("NATF0", "", 8) as session:
        replies = [session.step(frame).pcm for frame in user[:12]]
        session.rebuild(persona="You are in a restaurant.", voice="VARF2")
        replies += [session.step(frame).pcm for frame in user[12:24]]
        session.rewind(0.8)
        replies += [session.step(frame).pcm for frame in user[24:]]
    assert np.array_equal(caller.heard(), np.stack(replies))


def test_a_voice_is_one_of_the_bundle(steered: Running, tiny_bundle: Bundle) -> None:
    """The runtime takes the path of a recording as well, which a client must not read."""

    async def visit() -> None:
        async with call(steered.url, control="1") as caller:
            await caller.handshake()
            for voice in ("/etc/passwd", str(tiny_bundle.folder), "NATF9", "a.wav"):
                assert "Unknown voice" in await refused(caller, {"type": "rebuild", "voice": voice})

    run(visit())


def test_what_the_runtime_refuses_is_refused_with_its_reason(steered: Running) -> None:
    async def visit() -> None:
        async with call(steered.url, control="1") as caller:
            await (await caller.handshake()).talk(speech(6))
            for order, words in (
                ({"type": "say", "text": "7:30"}, "can be said in several ways"),
                ({"type": "say", "text": "a" * 3000}, "3000 characters"),
                ({"type": "say", "text": " "}, "no words"),
                ({"type": "say", "text": "\ud83d"}, "several ways"),
                ({"type": "say", "text": TEXT, "when": "later"}, "now, pause, turn"),
                ({"type": "say", "text": TEXT, "gap": -1}, "gap is -1"),
                ({"type": "rewind", "seconds": 3600}, "can go back"),
                ({"type": "rebuild", "keep_seconds": 80_000}, "cannot be kept"),
                ({"type": "rebuild", "persona": "a salad and " * 2000}, "prompt"),
            ):
                assert words in await refused(caller, order), order
            for _ in range(8):
                await done(caller, "say", text=TEXT, when="turn")
            assert "queued already" in await refused(caller, {"type": "say", "text": TEXT})
            assert await done(caller, "say", text=TEXT, interrupt=True)
            await caller.talk(speech(2))

    run(visit())


def test_control_goes_on_after_a_lost_connection(steered: Running) -> None:
    async def visit() -> None:
        async with call(steered.url, control="1", seed="4") as caller:
            await (await caller.handshake()).talk(speech(5))
            await done(caller, "hold")
            await done(caller, "say", id="later", text=TEXT)
            key = caller.session["resume"]
            caller.drop()
        async with call(steered.url, resume=key) as caller:
            await caller.handshake()
            await send(caller, {"type": "release"})
            await caller.talk(speech(2))
            assert not answers(caller) and "frame" not in caller.session, "this connection did not ask for control"
            caller.drop()
        async with call(steered.url, resume=key, control="1") as caller:
            assert (await caller.handshake()).session["frame"] == 7
            assert await done(caller, "release") == {"type": "done", "order": "release", "id": None, "frame": 8}
            await chat(caller, lambda: [state for state, _ in said(caller, "later")] == ["speaking", "done"])

    run(visit())


def test_without_asking_for_control_an_order_has_no_effect(steered: Running, reference: Runtime) -> None:
    user = speech(12)

    async def visit() -> Caller:
        async with call(steered.url, seed="6") as caller:
            await (await caller.handshake()).talk(user[:2])
            await send(caller, {"type": "hold"})
            await send(caller, b"no JSON")
            await caller.talk(user[2:])
            return caller

    caller = run(visit())
    assert np.array_equal(caller.heard(), expected(reference, user, "NATF0", "", 6)[0])
    assert not answers(caller) and "frame" not in caller.session


def test_an_order_before_the_conversation_begins_is_refused(steered: Running) -> None:
    async def visit() -> None:
        async with call(steered.url, control="1", early_metadata="0") as caller:
            assert (await ordered(caller, {"type": "hold", "id": "x"}))["reason"] == "The conversation has not begun."
            await caller.handshake()
            await done(caller, "hold")

    run(visit())


def test_a_memory_window_rebuilds_a_long_conversation(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url, voice_prompt="none", text_prompt="You enjoy salad.", seed="1") as caller:
            assert len(await (await caller.handshake()).talk(speech(55))) == 55

    with serve("--slots", "1", "--memory-window", "90") as server:
        run(visit(server.url))
        server.wait_for(lambda: server.metric('pplex_rebuilds_total{cause="window"}') >= 1)
