"""A conversation over the wire equals that of the runtime, whoever else is connected."""

import asyncio
import time

import av
import numpy as np
from answers import expected, is_close
from callers import FRAME, FRAME_S, Caller, call, dial, frame, listen, run, speech
from serving import Running, Serve

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime
from pplex.server.ogg import PageReader
from pplex.server.opus import PacketEncoder, PacketPages


def test_a_conversation_equals_that_of_the_runtime(server: Running, alone: Runtime) -> None:
    user = speech(25)

    async def converse() -> Caller:
        async with call(server.url, voice_prompt="NATM1.pt", text_prompt="You are kind.", seed="42") as caller:
            await (await caller.handshake()).talk(user)
            return caller

    caller = run(converse())
    pcm, text = expected(alone, user, "NATM1", "You are kind.", 42)
    assert is_close(caller.heard(), pcm)
    assert caller.text == text != ""
    kinds = [kind for kind, _ in caller.messages if kind != "ping"]
    assert kinds[:2] == ["handshake", "metadata"] and kinds.count("handshake") == 1
    assert caller.all("handshake") == [b""]
    facts = caller.session
    assert (facts["voice"], facts["seed"], facts["audio"], facts["resumed"]) == ("NATM1", 42, "f32", False)
    assert (facts["sample_rate"], facts["frame_size"], facts["ignored"]) == (24_000, FRAME, [])


def test_s16_conversation_equals_that_of_the_runtime(server: Running, alone: Runtime) -> None:
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


OFFICIAL = {  # the query of the reference's web client
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


def test_official_client_gets_one_page_per_frame(server: Running) -> None:
    """It sends two headers and pages of two packets. Its decoder starts late, skips pages 0 and 1 and never joins pages."""
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
        assert message[:4] == b"OggS" and len(message) == 27 + len(lacing) + sum(lacing)  # one complete page
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


def test_eight_clients_at_once_get_their_own_conversations(serve: Serve, tiny_bundle: Bundle) -> None:
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


def test_audio_sent_while_priming_is_answered_without_a_burst(server: Running, alone: Runtime) -> None:
    """The first six frames come with the request, before priming can begin."""
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
    assert is_close(np.frombuffer(b"".join(heard), "<f4").reshape(-1, FRAME), pcm)
    assert times[5] - times[0] > 0.15  # five pauses of 60 ms; a busy machine may shorten the first
    assert not any(b"dropped" in message for message in others)
