"""What a client of the real server can rely on: its own conversation, and every stated policy."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest
import soundfile
from callers import FRAME, FRAME_S, Caller, call, dial, frame, listen, run, speech
from serving import COMMAND, Running, Serve

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime
from pplex.server.app import Server
from pplex.server.ogg import PageReader
from pplex.server.options import ServeOptions
from pplex.server.opus import PacketEncoder, PacketPages


@pytest.fixture(scope="module")
def alone(tiny_bundle: Bundle) -> Runtime:
    """A runtime of our own, to compare with, of the shared server's only batch size."""
    return Runtime(tiny_bundle, slots=4, threads=1, batches=[4])


def expected(runtime: Runtime, frames: np.ndarray, voice: str, persona: str, seed: int) -> tuple[np.ndarray, str]:
    """What the agent says to frames [n, 1920] without a server: frames [n, 1920] and text."""
    with runtime.open(voice, persona, seed) as session:
        replies = [session.step(frame) for frame in frames]
    return np.stack([reply.pcm for reply in replies]), "".join(reply.text for reply in replies)


def close(heard: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for what the wire rounds."""
    return heard.shape == wanted.shape and bool(np.abs(heard - wanted).max() < 1e-4)


@pytest.mark.parametrize("one, batches", [(True, [4]), (False, [1, 2, 4])])
def test_one_batch_size_is_that_of_all_slots(tiny_bundle: Bundle, one: bool, batches: list[int]) -> None:
    async def load() -> Runtime:
        return Server(tiny_bundle, ServeOptions(slots=4, threads=1, device="cpu", one_batch_size=one))._load()

    assert run(load()).batches == batches


# A conversation.


def test_a_conversation_is_the_runtimes(server: Running, alone: Runtime) -> None:
    user = speech(25)

    async def converse() -> Caller:
        async with call(server.url, voice_prompt="NATM1.pt", text_prompt="You are kind.", seed="42") as caller:
            await (await caller.handshake()).talk(user)
            return caller

    caller = run(converse())
    pcm, text = expected(alone, user, "NATM1", "You are kind.", 42)
    assert close(caller.heard(), pcm)
    assert caller.text == text != ""
    kinds = [kind for kind, _ in caller.messages if kind != "ping"]
    assert kinds[:2] == ["handshake", "metadata"] and kinds.count("handshake") == 1
    assert caller.all("handshake") == [b""]
    facts = caller.session
    assert (facts["voice"], facts["seed"], facts["audio"], facts["resumed"]) == ("NATM1", 42, "f32", False)
    assert (facts["sample_rate"], facts["frame_size"], facts["ignored"]) == (24_000, FRAME, [])


def test_samples_of_16_bits(server: Running, alone: Runtime) -> None:
    user = np.rint(speech(8) * 32767).astype("<i2")

    async def converse() -> np.ndarray:
        async with call(server.url, audio="s16", seed="3") as caller:
            await caller.handshake()
            for frame in user:
                await caller.ws.send_bytes(b"\1" + frame.tobytes())
                await asyncio.sleep(FRAME_S)
            await caller.until(lambda: len(caller.all("audio")) == 8)
            return np.frombuffer(b"".join(caller.all("audio")), "<i2").reshape(-1, FRAME)

    heard = run(converse())
    pcm, _ = expected(alone, (user / 32768).astype(np.float32), "NATF0", "", 3)
    assert np.abs(heard / 32768 - np.clip(pcm, -1, 1)).max() < 1e-3


OFFICIAL = {  # what the reference's web client sends
    "audio": "",
    "early_metadata": "",
    "text_temperature": "0.7",
    "text_topk": "25",
    "audio_temperature": "0.8",
    "audio_topk": "250",
    "pad_mult": "0",
    "text_seed": "4711",
    "audio_seed": "815",
    "repetition_penalty_context": "64",
    "repetition_penalty": "1",
    "text_prompt": "You are kind.",
    "voice_prompt": "NATM1.pt",
}


def test_the_official_client(server: Running) -> None:
    """It sends two headers and pages of two packets, and joins late: its decoder skips pages 0 and 1 and joins none."""
    user = speech(26).ravel()

    async def converse() -> Caller:
        async with call(server.url, **OFFICIAL) as caller:
            await caller.handshake()
            await caller.until(lambda: caller.all("ping"), "a ping to a client that is silent")
            encoder = PacketEncoder()
            pages, packets = PacketPages(encoder.head), encoder.push(user)
            for header in pages.headers():
                await caller.ws.send_bytes(b"\1" + header)
            for i in range(0, len(packets), 2):
                await caller.ws.send_bytes(b"\1" + pages.page(packets[i : i + 2]))
                await asyncio.sleep(0.04)
            await caller.until(lambda: len(caller.all("audio")) >= 2 + 26)
            return caller

    caller = run(converse())
    messages = caller.all("audio")
    assert len(messages) == 2 + 26  # the headers, then a message for each frame
    for number, message in enumerate(messages):
        lacing = message[27 : 27 + message[26]]
        assert message[:4] == b"OggS" and len(message) == 27 + len(lacing) + sum(lacing)  # one page, and whole
        assert int.from_bytes(message[18:22], "little") == number
    assert messages[0][28:36] == b"OpusHead" and messages[0][37] == 1  # one channel
    assert messages[1][28:36] == b"OpusTags"
    assert caller.text
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    late = PageReader()
    packets = [part for message in messages[:2] + messages[8:] for part in late.push(message)]
    audio = [packet for packet in packets if isinstance(packet, bytes)]
    samples = [frame.samples for packet in audio for frame in decoder.decode(av.Packet(packet))]
    assert samples == [3840] * 20  # a packet of 80 ms a page: some clients decode only the first one


def test_everyone_gets_their_own_conversation_whoever_else_is_there(serve: Serve, tiny_bundle: Bundle) -> None:
    """Eight at once, joining 50 ms apart, each with another voice, persona and seed; two of them with the same."""
    user = speech(20)
    wishes = [(("NATF0", "NATM1", "VARF2")[i % 3], f"You like {i}.", i) for i in range(7)]
    wishes.append(wishes[2])

    async def converse(url: str, wish: tuple[str, str, int], delay_s: float) -> Caller:
        await asyncio.sleep(delay_s)
        async with call(url, voice_prompt=wish[0], text_prompt=wish[1], seed=str(wish[2])) as caller:
            await (await caller.handshake()).talk(user)
            return caller

    async def everyone(url: str) -> list[Caller]:
        return await asyncio.gather(*(converse(url, wish, 0.05 * i) for i, wish in enumerate(wishes)))

    with serve("--slots", "8", "--one-batch-size") as server:
        callers = run(everyone(server.url))
    alone = Runtime(tiny_bundle, slots=8, threads=1, batches=[8])
    for caller, wish in zip(callers, wishes, strict=True):
        pcm, text = expected(alone, user, *wish)
        assert np.array_equal(caller.heard(), pcm), wish
        assert caller.text == text


def test_what_is_said_while_priming_is_heard_and_answered_without_a_burst(server: Running, alone: Runtime) -> None:
    """The first six frames come with the request, before any priming can have begun."""
    user = speech(12)
    said = [frame(b"\1" + pcm.astype("<f4").tobytes()) for pcm in user]

    async def converse() -> tuple[list[bytes], list[bytes], list[float]]:
        heard, others, times = list[bytes](), list[bytes](), list[float]()
        query = "audio=f32&seed=5&text_prompt=New."
        async with dial(server.port, query, b"".join(said[:6])) as (reader, writer):
            while len(heard) < 12:
                _, message = await listen(reader)
                if message[0] == 1:
                    heard.append(message[1:])
                    times.append(time.monotonic())
                else:
                    others.append(message)
                if len(heard) == 6 and message[0] == 1:
                    for part in said[6:]:
                        writer.write(part)
                        await asyncio.sleep(FRAME_S)
            writer.write(frame(b"", opcode=8))
            await listen(reader)
        return heard, others, times

    heard, others, times = run(converse())
    pcm, _ = expected(alone, user, "NATF0", "New.", 5)
    assert close(np.frombuffer(b"".join(heard), "<f4").reshape(-1, FRAME), pcm)
    assert times[5] - times[0] > 0.15  # five pauses of 60 ms, of which a busy machine may shorten the first
    assert not any(b"dropped" in message for message in others)


# Policies.


def test_a_full_server_queues_tells_the_position_and_refuses(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as talking:
            await talking.handshake()
            async with call(url) as second, call(url) as third:
                await second.until(lambda: second.metadata("queued"))
                await third.until(lambda: third.metadata("queued"))
                assert second.metadata("queued") == [{"type": "queued", "position": 1}]
                assert third.metadata("queued") == [{"type": "queued", "position": 2}]
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    async with call(url):
                        pass
                assert refused.value.status == 503
                assert int(refused.value.headers["Retry-After"]) > 0  # type: ignore[index]
                await third.until(lambda: third.all("ping"), "a ping in the queue")
                await talking.ws.close()
                await second.handshake()
                await third.until(lambda: {"type": "queued", "position": 1} in third.metadata("queued"))
                assert not third.all("handshake")
                await second.ws.close()
                await third.handshake()

    with serve("--slots", "1", "--queue", "2") as server:
        run(visit(server.url))
        server.wait_for(lambda: server.state() == {"ready": True, "slots": 1, "used": 0, "queued": 0})


def test_nobody_queues_for_ever(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as talking:
            await talking.handshake()
            async with call(url) as waiting:
                assert await waiting.closed() == 1013
                assert b"No slot became free" in waiting.all("error")[0]

    with serve("--slots", "1", "--queue-seconds", "0.5") as server:
        run(visit(server.url))
        assert server.metric('pplex_partings_total{cause="queue"}') == 1


def test_late_audio_is_dropped_told_and_counted(serve: Serve) -> None:
    async def visit(url: str) -> Caller:
        async with call(url) as caller:
            await caller.handshake()
            await caller.say(*speech(20))
            await caller.until(lambda: caller.metadata("dropped"))
            await caller.replies(4)
            await asyncio.sleep(0.3)
            return caller

    with serve("--slots", "1", "--backlog", "4") as server:
        caller = run(visit(server.url))
        dropped = caller.metadata("dropped")[-1]["frames"]
        assert dropped >= 15  # one may have been heard before the others arrived
        assert len(caller.all("audio")) == 20 - dropped
        assert server.metric('pplex_dropped_frames_total{reason="backlog"}') == dropped


def test_an_idle_client_is_closed_and_a_long_conversation_ended(serve: Serve) -> None:
    async def idle(url: str) -> None:
        async with call(url) as caller:
            await caller.handshake()
            assert await caller.closed() == 1008
            assert caller.all("error") == [b"No audio for 1 s."]

    async def long(url: str) -> None:
        async with call(url) as caller:
            await caller.handshake()
            with suppress(ConnectionError):  # it is closed before the last one
                for frame in speech(60):
                    await caller.say(frame)
                    await asyncio.sleep(FRAME_S)
            assert await caller.closed() == 1008
            assert b"may last" in caller.all("error")[0]

    async def waiting(url: str) -> None:
        async with call(url) as caller:
            await caller.until(lambda: caller.metadata("queued"))
            await caller.handshake()  # as long as a conversation may last has passed
            assert len(await caller.talk(speech(10))) == 10

    async def both(url: str) -> None:
        ending = asyncio.create_task(long(url))
        await asyncio.sleep(0.1)
        await asyncio.gather(ending, waiting(url))

    with serve("--slots", "1", "--idle-seconds", "1", "--max-minutes", "0.035") as server:
        run(idle(server.url))
        server.wait_for(lambda: server.state()["used"] == 0)
        run(both(server.url))


def test_who_leaves_while_priming_frees_the_slot(server: Running) -> None:
    async def visit() -> None:
        for i in range(5):
            async with call(server.url, text_prompt=f"Go {i}. " * 5) as caller:
                await caller.say(*speech(1))

    run(visit())
    server.wait_for(lambda: server.state()["used"] == 0)


def test_a_closed_conversation_cannot_be_resumed_and_frees_its_slot(server: Running) -> None:
    async def visit() -> None:
        async with call(server.url) as caller:
            key = (await caller.handshake()).session["resume"]
        for attempt in (key, "nonsense"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with call(server.url, resume=attempt):
                    pass
            assert refused.value.status == 404

    run(visit())
    server.wait_for(lambda: server.state()["used"] == 0)


def test_a_lost_client_goes_on_where_it_was(server: Running, alone: Runtime) -> None:
    user = speech(20)

    async def converse() -> tuple[np.ndarray, str]:
        async with call(server.url, text_prompt="You remember.", seed="9") as caller:
            await (await caller.handshake()).talk(user[:8])
            first, text = caller.heard(), caller.text
            key = caller.session["resume"]
            caller.drop()
        await asyncio.sleep(0.5)
        assert server.metric("pplex_slots_kept") == 1
        async with call(server.url, resume=key) as caller:
            await (await caller.handshake()).talk(user[8:])
            assert caller.session["resumed"] is True
            return np.concatenate([first, caller.heard()]), text + caller.text

    heard, text = run(converse())
    pcm, wanted = expected(alone, user, "NATF0", "You remember.", 9)
    assert close(heard, pcm)
    assert text == wanted


def test_who_resumes_takes_over_from_a_connection_that_seems_alive(server: Running) -> None:
    async def visit() -> None:
        async with call(server.url) as old:
            key = (await old.handshake()).session["resume"]
            async with call(server.url, resume=key, audio="s16") as new:
                await new.handshake()
                assert new.session["audio"] == "s16"
                assert await old.closed() == 4001
                await new.ws.send_bytes(b"\1" + bytes(FRAME * 2))
                await new.until(lambda: new.all("audio"))
                assert len(new.all("audio")[0]) == FRAME * 2

    run(visit())
    server.wait_for(lambda: server.state()["used"] == 0)


def test_a_client_that_does_not_return_is_forgotten(server: Running) -> None:
    """The shared server keeps a lost client's conversation for 2 s."""

    async def visit() -> str:
        async with call(server.url) as caller:
            key: str = (await caller.handshake()).session["resume"]
            caller.drop()
        return key

    key = run(visit())
    server.wait_for(lambda: server.metric("pplex_slots_kept") == 1)
    server.wait_for(lambda: server.state()["used"] == 0)
    assert server.get(f"/api/chat?resume={key}")[0] == 404


# Operations.


def test_it_is_alive_before_it_is_ready(serve: Serve) -> None:
    with serve("--slots", "1", ready=False) as server:
        assert server.get("/health") == (200, "ok\n")
        server.wait_for(lambda: server.get("/ready")[0] == 200, 60)
        server.wait_for(lambda: server.get("/api/chat")[0] == 426)


def test_signals_let_conversations_finish_and_then_end_them(serve: Serve) -> None:
    async def visit(server: Running) -> None:
        async with call(server.url) as caller:
            await caller.handshake()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, lambda: server.get("/ready")[0] == 503)
            assert server.get("/health")[0] == 200
            status, reason = server.get("/api/chat")
            assert (status, reason) == (503, "The server is shutting down. Try again later.\n")
            assert len(await caller.talk(speech(5))) == 5
            assert await caller.closed() == 1001
        assert await asyncio.to_thread(server.process.wait, 10) == 0

    with pytest.raises(AssertionError, match="the server ended with 0"), serve("--drain-seconds", "2") as server:
        run(visit(server))


def test_it_ends_when_the_last_conversation_does(serve: Serve) -> None:
    async def visit(server: Running) -> float:
        async with call(server.url) as caller:
            await caller.handshake()
            server.process.send_signal(signal.SIGTERM)
            await caller.talk(speech(3))
        began = time.monotonic()
        assert await asyncio.to_thread(server.process.wait, 10) == 0
        return time.monotonic() - began

    with pytest.raises(AssertionError, match="the server ended with 0"), serve("--drain-seconds", "60") as server:
        assert run(visit(server)) < 10


LOADING = """
import time
from pplex.runtime.session import Runtime
Runtime.__init__ = lambda *arguments, **options: time.sleep(300)
"""


@pytest.mark.parametrize("prelude", [LOADING, ""], ids=["in Python", "in ONNX Runtime"])
def test_it_ends_at_once_while_it_loads(serve: Serve, prelude: str) -> None:
    with pytest.raises(AssertionError, match="the server ended with 0"), serve(ready=False, prelude=prelude) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


def test_who_takes_a_file_slowly_does_not_keep_it_from_ending(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>Their client</h1>")
    (tmp_path / "large").write_bytes(bytes(30_000_000))
    started = serve("--static", str(tmp_path), "--slots", "1")
    with pytest.raises(AssertionError, match="the server ended with 0"), started as server, socket.socket() as plug:
        plug.connect(("127.0.0.1", server.port))
        plug.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plug.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def test_metrics(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            await (await caller.handshake()).talk(speech(10))

    with serve("--slots", "2") as server:
        run(visit(server.url))
        server.get("/api/chat?seed=x")
        server.wait_for(lambda: server.state()["used"] == 0)
        for stage in ("wait", "step", "encode", "total", "mimi_encode", "temporal", "depth", "mimi_decode"):
            assert server.metric(f'pplex_frame_seconds_count{{stage="{stage}"}}') == 10, stage
        assert server.metric("pplex_frames_total") == 10
        assert server.metric("pplex_batch_size_sum") == 10
        assert server.metric("pplex_slots") == 2
        assert server.metric("pplex_conversations_total") == 1
        assert server.metric('pplex_partings_total{cause="client"}') == 1
        assert server.metric('pplex_refused_total{status="400"}') == 1
        assert server.metric('pplex_bytes_total{direction="in"}') == 10 * (4 * FRAME + 1)
        assert server.metric('pplex_bytes_total{direction="out"}') >= 10 * (4 * FRAME + 1)
        assert server.metric("pplex_event_loop_lag_seconds_count") > 10


def test_the_log_has_conversations_and_no_prompts_unless_asked(serve: Serve) -> None:
    async def visit(url: str) -> str:
        async with call(url, text_prompt="My secret name is Zebedee.") as caller:
            await (await caller.handshake()).talk(speech(2))
            identity: str = caller.session["id"]
            return identity

    for arguments, is_told in ((["--token", "tok-en"], False), (["--log-prompts"], True)):
        with serve(*arguments) as server:
            identity = run(visit(server.url + "") if is_told else visit_with_token(server.url))
            server.wait_for(lambda server=server: server.state()["used"] == 0)
            events = [event for event in server.events() if event.get("conversation") == identity]
            assert [event["event"] for event in events][-1] == "conversation ended"
            assert ("Zebedee" in server.log.read_text()) is is_told
            assert "tok-en" not in server.log.read_text()


async def visit_with_token(url: str) -> str:
    async with call(url, text_prompt="My secret name is Zebedee.", token="tok-en") as caller:
        await (await caller.handshake()).talk(speech(2))
        identity: str = caller.session["id"]
        return identity


def test_a_recording_holds_both_sides(serve: Serve, tmp_path: Path) -> None:
    user = speech(10)

    async def visit(url: str) -> tuple[str, np.ndarray]:
        async with call(url) as caller:
            heard = await (await caller.handshake()).talk(user)
            return caller.session["id"], heard

    with serve("--record", str(tmp_path / "kept")) as server:
        identity, heard = run(visit(server.url))
        path = tmp_path / "kept" / f"{identity}.flac"
        server.wait_for(path.exists)
    stereo, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000 and stereo.shape == (10 * FRAME, 2)
    assert np.abs(stereo[:, 0] - user.ravel()).max() < 1e-4
    assert np.abs(stereo[:, 1] - np.clip(heard.ravel(), -1, 1)).max() < 1e-4
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [f"{identity}.flac"]


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"  # no file may be larger


def test_a_full_disk_ends_the_recording_and_not_the_conversation(serve: Serve, tmp_path: Path) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            assert len(await (await caller.handshake()).talk(speech(15))) == 15

    with serve("--record", str(tmp_path), prelude=FULL_DISK) as server:
        run(visit(server.url))
        server.wait_for(lambda: server.state()["used"] == 0)
        assert [event["event"] for event in server.events() if event["level"] == "error"] == ["a recording ended early"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_a_folder_in_place_of_our_page(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>Their client</h1>")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "client.js").write_text("talk()")
    with serve("--static", str(tmp_path), "--slots", "1") as server:
        assert server.get("/") == (200, "<h1>Their client</h1>")
        assert server.get("/assets/client.js") == (200, "talk()")
        assert server.get("/page.js")[0] == 404
        assert server.get("/api/chat")[0] == 426


FAILING = """
from pplex.runtime.errors import GpuError
from pplex.runtime.session import Runtime
whole = Runtime.{method}
calls = []
def failing(*arguments, **options):
    calls.append(1)
    if len(calls) > {calls}:
        raise GpuError("The GPU has fallen off the bus.")
    return whole(*arguments, **options)
Runtime.{method} = failing
"""


def test_an_engine_that_fails_closes_everything_and_ends_the_server(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller, call(url) as waiting:
            await caller.handshake()
            await caller.say(*speech(4))
            assert await caller.closed() == 1011
            assert await waiting.closed() == 1011

    started = serve("--slots", "1", prelude=FAILING.format(method="step", calls=3))
    with pytest.raises(AssertionError, match="the server ended with 1"), started as server:
        run(visit(server.url))
        assert server.process.wait(10) == 1
        assert "Error: The GPU has fallen off the bus.\n" in server.log.read_text()


def test_an_engine_that_cannot_be_loaded_ends_the_server(serve: Serve) -> None:
    started = serve(ready=False, prelude=FAILING.format(method="__init__", calls=0))
    with pytest.raises(AssertionError, match="the server ended with 1"), started as server:
        assert server.process.wait(20) == 1
        assert "Error: The GPU has fallen off the bus.\n" in server.log.read_text()


# Who may talk.


def test_a_token_is_asked_for(serve: Serve) -> None:
    async def visit(url: str) -> None:
        for query, headers in (
            ({"token": "secret"}, {}),
            ({"worker_auth_id": "other"}, {}),
            ({}, {"Authorization": "Bearer secret"}),
        ):
            async with call(url, headers, **query) as caller:
                await caller.handshake()

    with serve("--token", "secret", "--token", "other") as server:
        assert server.get("/api/chat")[0] == 401
        for wrong in ("token=", "token=Secret", "token=secre", "worker_auth_id=secret2", "token=%C3%A9%00"):
            assert server.get(f"/api/chat?{wrong}")[0] == 401, wrong
        assert json.loads(server.get("/api/info")[1])["token_required"] is True
        run(visit(server.url))


def test_pages_of_other_origins_are_refused_unless_allowed(serve: Serve, server: Running) -> None:
    def status(running: Running, origin: str) -> int:
        request = urllib.request.Request(f"{running.url}/api/chat", headers={"Origin": origin})
        try:
            with urllib.request.urlopen(request) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(server, "https://evil.example") == 403
    assert status(server, "null") == 403
    assert status(server, "http://") == 403
    assert status(server, "http://[evil.example") == 403
    assert status(server, server.url) == 426
    with serve("--origin", "https://friend.example") as other:
        assert status(other, "https://friend.example") == 426
        assert status(other, "https://evil.example") == 403


def test_wrong_arguments_say_what_to_do(tiny_bundle: Bundle, server: Running, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    (tmp_path / "key.pem").write_text("nonsense")
    for arguments, message in (
        (["--port", str(server.port)], "Cannot listen on"),
        (["--host", "no.such.host.invalid"], "Cannot listen on"),
        (["--ssl", str(tmp_path / "none")], "lacks cert.pem and key.pem"),
        (["--ssl", str(tmp_path)], "cannot be used"),
        (["--ssl", str(tmp_path), "--self-signed"], "give only one of them"),
        (["--static", str(tmp_path)], "has no index.html"),
        (["--record", "/proc/nowhere"], "cannot be written to"),
        (["--token", ""], "--token is empty"),
        ([], "PPLEX_TOKEN is set, but empty"),
    ):
        environment = os.environ if arguments else {**os.environ, "PPLEX_TOKEN": ""}
        command = [*COMMAND, str(tiny_bundle.folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode in (1, 2), arguments
        assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
