"""Clients of several replicas behind HAProxy get what a client of `serve` gets."""

import asyncio
import json
from contextlib import AsyncExitStack

import aiohttp
import numpy as np
import pytest
from answers import expected, is_close
from callers import Caller, ask, call, dial, frame, listen, run, speech
from live_caller import live, pcm16
from scaled import Scaled
from steering import done, refused

from pplex.runtime.session import Runtime
from pplex.server.pages import PAGE


async def _fill(stack: AsyncExitStack, url: str, count: int) -> list[Caller]:
    """Callers who are in a conversation."""
    callers = [await stack.enter_async_context(call(url)) for _ in range(count)]
    for caller in callers:
        await caller.handshake()
    return callers


def test_a_seed_gives_the_same_conversation_as_a_runtime(scaled: Scaled, alone: Runtime) -> None:
    user = speech(12)

    async def visit() -> tuple[np.ndarray, str]:
        async with call(scaled.url, text_prompt="You enjoy tea.", seed="5", voice_prompt="NATM1") as caller:
            await (await caller.handshake()).talk(user)
            return caller.heard(), caller.text

    heard, text = run(visit())
    pcm, wanted = expected(alone, user, "NATM1", "You enjoy tea.", 5)
    assert is_close(heard, pcm)
    assert text == wanted


def test_gpt_live_gives_the_same_conversation_over_any_replica(scaled: Scaled, alone: Runtime) -> None:
    """Its settings, larger than a message of chat may be, come over the open connection."""
    user = [pcm16(one) for one in speech(6)]

    async def visit() -> bytes:
        async with live(scaled.url, seed="5") as caller:
            await caller.start(
                model="any",
                instructions="You enjoy tea.",
                audio={"output": {"voice": "NATM1"}},
                input=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x" * 90_000}]}],
            )
            await caller.talk(user)
            await caller.replies(6)
            return caller.audio

    heard = np.frombuffer(run(visit()), "<i2")
    sent = np.stack([np.frombuffer(one, "<i2") for one in user]) / np.float32(32768)
    pcm, _ = expected(alone, sent, "NATM1", "You enjoy tea.", 5)
    assert is_close(heard[: pcm.size] / 32768, pcm.ravel())
    assert ask(scaled, "/v1/models")[0] == 200
    assert ask(scaled, "/v1/realtime/calls", method="POST")[0] == 404


def test_every_slot_of_every_replica_is_used_before_a_client_is_refused(scaled: Scaled) -> None:
    async def visit() -> None:
        async with AsyncExitStack() as stack:
            await _fill(stack, scaled.url, 6)
            assert set(scaled.metrics("pplex_slots_used").values()) == {2.0}
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await stack.enter_async_context(call(scaled.url))
            assert refused.value.status == 503
            assert refused.value.headers is not None and refused.value.headers["Retry-After"] == "10"
            for path, method in (("/api/chat", "POST"), ("/ready", "GET")):
                assert (await asyncio.to_thread(_status, scaled, path, method)) == 503

    run(visit())
    scaled.wait_for(lambda: set(scaled.metrics("pplex_slots_used").values()) == {0.0})


def _status(scaled: Scaled, path: str, method: str) -> int:
    return ask(scaled, path, method=method)[0]


def test_a_snapshot_is_continued_on_the_replica_that_has_it(scaled: Scaled) -> None:
    """The balancer sends the four connections to all replicas; an order above 64 KiB passes it, too."""

    async def visit() -> None:
        async with call(scaled.url, control="1", token="boss", seed="3") as caller:
            await (await caller.handshake()).talk(speech(3))
            assert "70,000" in await refused(caller, b" " * 70_000)
            assert "200,000" in await refused(caller, b" " * 200_000)
            key = (await done(caller, "snapshot"))["key"]
        for _ in range(4):
            async with call(scaled.url, control="1", token="boss", snapshot=key) as fork:
                assert (await fork.handshake()).session["seed"] == 3
                assert fork.session["frame"] == 3
        assert (await asyncio.to_thread(_status, scaled, f"/api/chat?snapshot={key}", "POST")) == 403

    run(visit())


def test_a_lost_client_returns_to_the_replica_that_holds_its_conversation(scaled: Scaled, alone: Runtime) -> None:
    """The balancer sends the six connections to all three replicas."""
    user = speech(21)

    async def visit() -> tuple[np.ndarray, list[bool]]:
        async with call(scaled.url, seed="9") as caller:
            await (await caller.handshake()).talk(user[:3])
            heard, key = [caller.heard()], caller.session["resume"]
            caller.drop()
        resumed = []
        for turn in range(1, 7):
            assert (await asyncio.to_thread(_status, scaled, f"/api/chat?resume={key}", "POST")) == 204
            async with call(scaled.url, resume=key) as caller:
                heard.append(await (await caller.handshake()).talk(user[3 * turn : 3 * turn + 3]))
                resumed.append(caller.session["resumed"])
                caller.drop()
        async with call(scaled.url, resume=key) as caller:
            await caller.handshake()
        return np.concatenate(heard), resumed

    heard, resumed = run(visit())
    assert resumed == [True] * 6
    assert is_close(heard, expected(alone, user, "NATF0", "", 9)[0])


def test_a_key_of_ours_is_needed_to_reach_another_address(scaled: Scaled) -> None:
    for key in ("127.0.0.1:22", "gAAAAABnonsense", "%00"):
        status, text, _ = ask(scaled, f"/api/chat?resume={key}")
        assert (status, text) == (404, "The conversation with this key is over. Start a new one.\n")


def test_close_codes_pass_both_ways(scaled: Scaled) -> None:
    async def visit() -> list[int]:
        codes = []
        async with call(scaled.url) as old, AsyncExitStack() as stack:
            key = (await old.handshake()).session["resume"]
            new = await stack.enter_async_context(call(scaled.url, resume=key))
            await new.handshake()
            codes.append(await old.closed())
            await new.ws.send_bytes(b"\1" + bytes(3))
            codes.append(await new.closed())
            assert len(new.all("error")) == 1
        async with call(scaled.url) as large:
            await (await large.handshake()).ws.send_bytes(b"\1" + bytes(70_000))
            codes.append(await large.closed())
        return codes

    assert run(visit()) == [4001, 1007, 1009]
    scaled.wait_for(lambda: set(scaled.metrics("pplex_slots_used").values()) == {0.0})


def test_a_client_that_leaves_frees_its_slot(scaled: Scaled) -> None:
    async def visit() -> None:
        async with call(scaled.url) as caller:
            await caller.handshake()
            await caller.ws.close()
        async with call(scaled.url) as caller:
            await caller.handshake()
            await caller.ws.close(code=4321)

    run(visit())
    scaled.wait_for(lambda: set(scaled.metrics("pplex_slots_used").values()) == {0.0})
    assert sum(scaled.metrics("pplex_slots_kept").values()) == 0


def test_pings_of_clients_and_of_the_server_are_answered(scaled: Scaled) -> None:
    """The server pings every 10 s, as `serve` does; a client that does not answer is lost after 5 s more."""

    async def visit() -> list[int]:
        async with dial(scaled.port, "audio=f32&early_metadata=1") as (reader, writer):
            writer.write(frame(b"are you there?", opcode=9))
            opcodes = []
            while not {9, 10} <= set(opcodes):
                opcodes.append((await listen(reader))[0])
            return opcodes

    assert 10 in run(visit())
    scaled.wait_for(lambda: sum(scaled.metrics("pplex_slots_kept").values()) == 0, 40)


def test_the_page_and_its_files_are_those_of_serve(scaled: Scaled) -> None:
    for path in PAGE.iterdir():
        status, text, headers = ask(scaled, f"/{path.name}")
        assert (status, text.encode()) == (200, path.read_bytes()), path.name
        assert "Content-Security-Policy" in headers
    assert ask(scaled, "/nothing%2f..%2fhere")[0] == 404
    status, _, headers = ask(scaled, "/login", method="POST", data={"token": "any"})
    assert status == 401
    assert ask(scaled, "/api/info")[1] == ask(scaled, "/api/info")[1]


def test_a_long_persona_passes_in_every_script(scaled: Scaled) -> None:
    async def visit() -> None:
        for persona in ("x" * 7000, "ы" * 3000):
            async with call(scaled.url, text_prompt=persona) as caller:
                await caller.handshake()

    run(visit())


def test_a_page_of_another_site_is_refused(scaled: Scaled) -> None:
    assert ask(scaled, "/api/chat", {"Origin": "https://example.org"}, method="POST")[0] == 403
    assert ask(scaled, "/api/chat", {"Origin": scaled.url}, method="POST")[0] == 204


def test_metrics_and_logs_name_the_replica(scaled: Scaled) -> None:
    replicas = set(scaled.metrics("pplex_slots"))
    assert len(replicas) == 3
    text = scaled.get("/metrics")[1]
    assert text.count("# TYPE pplex_frame_seconds histogram") == 1
    scaled.wait_for(lambda: '"event": "conversation ended"' in scaled.log.read_text())
    events = [json.loads(line) for line in scaled.log.read_text().splitlines() if line.startswith("{")]
    assert {event["replica"] for event in events} == replicas
    assert all("conversation" in event for event in events if event["event"] == "conversation ended")
