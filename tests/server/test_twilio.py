"""Telephone calls of Twilio to the real server, with a bare client."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tones
from callers import ask, run, speech
from live_caller import live
from serving import Running, Serve
from twilio_caller import AUTH_TOKEN, PACKET, PATH, SILENCE, TwilioCaller, attempt, frames_of, is_free, mu_law, phone

from pplex.server.g711 import MU_LAW
from pplex.server.twilio_signature import HEADER, signature_of

TOKEN = "secret-key"
GIVEN = {"token": TOKEN}
BOTH = ("chat", "live", "twilio")


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> Iterator[Running]:
    """4 slots and a token. A client that is late on a busy machine loses nothing."""
    options = {"protocols": BOTH, "tokens": (TOKEN,)}
    with serve(limits={"backlog_frames": 25, "silence_after_s": 5.0, "heartbeat_s": 1.0}, options=options) as running:
        yield running


@pytest.fixture(scope="module")
def signed(serve: Serve) -> Iterator[Running]:
    """Every wait is short, and calls need Twilio's signature."""
    with serve(
        limits={"idle_s": 2.0, "header_s": 1.0}, options={"protocols": BOTH, "twilio_auth_token": AUTH_TOKEN}
    ) as running:
        yield running


def last_end(server: Running) -> str:
    """The cause of the last conversation's end; its slot is free."""
    server.wait_for(lambda: is_free(server))
    return [event["cause"] for event in server.events() if event["event"] == "conversation ended"][-1]


# A call.


def test_both_sides_hear_each_other(serve: Serve, tmp_path: Path) -> None:
    """The agent sings a tone in each frame, and the caller a tone of 1 kHz: no click, no gap, nothing twice."""
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(25 * 1920) / 24_000)

    async def visit(url: str) -> TwilioCaller:
        async with phone(url) as caller:
            await caller.start(GIVEN)
            await caller.talk(mu_law(tone))
            await caller.replies(24)
            await caller.send("dtmf", streamSid=caller.sid, dtmf={"track": "inbound_track", "digit": "5"})
            await caller.send("mark", streamSid=caller.sid, mark={"name": "a"})
            await caller.stop()
            assert await caller.closed() == 1000
            return caller

    arguments = ("--protocols", "twilio", "--token", TOKEN, "--backlog", "25", "--record", str(tmp_path))
    with serve(*arguments, prelude=tones.PRELUDE) as server:
        caller = run(visit(server.url))
        assert last_end(server) == "client"
        server.wait_for(lambda: list(tmp_path.glob("*.flac")))
    assert all(len(frame) == 640 for frame in caller.frames)
    tones.assert_all_heard(MU_LAW.decode(caller.audio), 8_000, 24)
    (path,) = tmp_path.glob("*.flac")
    heard = soundfile.read(path, dtype="float32")[0][1920 : 24 * 1920, 0]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))) ** 2
    peak = round(1000 * len(heard) / 24_000)
    assert np.argmax(spectrum) == pytest.approx(peak, abs=1)
    assert spectrum[peak - 3 : peak + 4].sum() > 0.999 * spectrum.sum()


def test_the_agent_says_the_same_as_over_gpt_live(guarded: Running) -> None:
    """The same voice, seed, sampling and audio; the persona came in parts."""
    said = mu_law(speech(12))
    asked = {
        "voice": "NATM1",
        "persona": "You are",
        "persona_2": "kind.",
        "seed": "42",
        "audio_topk": "20",
        "caller": "x",
    }

    async def visit() -> tuple[bytes, bytes]:
        async with phone(guarded.url) as caller:
            await caller.start({**GIVEN, **asked})
            await caller.talk(said)
            await caller.replies(frames_of(said))
        guarded.wait_for(lambda: is_free(guarded))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with live(guarded.url, headers, seed="42", audio_topk="20") as other:
            audio = {"format": {"type": "audio/pcmu", "rate": 8000}, "output": {"voice": "NATM1"}}
            await other.start(instructions="You are kind.", audio=audio)
            await other.talk([said[at : at + PACKET] for at in range(0, len(said), PACKET)], 0.02)
            await other.replies(frames_of(said))
            return caller.audio, other.audio

    before = guarded.metric('pplex_conversations_total{protocol="twilio"}')
    by_phone, live_audio = run(visit())
    assert by_phone == live_audio[: len(by_phone)] and len(set(by_phone)) > 10
    assert guarded.metric('pplex_conversations_total{protocol="twilio"}') == before + 1
    admitted = [event for event in guarded.events() if event["event"] == "conversation admitted"]
    assert {"protocol": "twilio", "audio": "pcmu-8k", "ignored": ["customParameters.caller"]}.items() <= admitted[
        -2
    ].items()


def test_lost_packets_are_heard_as_silence(guarded: Running) -> None:
    """The agent hears the same as if Twilio had sent silence, so it says the same."""
    said, lost = mu_law(speech(12)), range(11, 19)
    silenced = said[: PACKET * lost.start] + SILENCE * PACKET * len(lost) + said[PACKET * lost.stop :]

    async def visit(codes: bytes, gap: range = range(0)) -> bytes:
        async with phone(guarded.url) as caller:
            await caller.start({**GIVEN, "seed": "5"})
            await caller.talk(codes, gap)
            await caller.replies(frames_of(codes))
            return caller.audio

    assert run(visit(said, lost)) == run(visit(silenced))


def test_the_agent_is_silent_while_twilio_is(signed: Running) -> None:
    """Nothing is heard in Twilio's place: a frame is answered only if it came. Later the slot is free."""

    async def visit() -> tuple[int, int]:
        async with phone(signed.url, AUTH_TOKEN) as caller:
            await caller.start()
            await caller.talk(mu_law(speech(4)))
            return await caller.closed(), len(caller.frames)

    code, frames = run(visit())
    assert (code, last_end(signed)) == (1008, "idle")
    assert 1 <= frames <= 4


def test_what_came_before_the_start_is_not_answered_in_a_burst(serve: Serve) -> None:
    async def visit(url: str) -> TwilioCaller:
        async with phone(url) as caller:
            await caller.start(GIVEN)
            for _ in range(200):  # 4 s
                await caller.media(SILENCE * PACKET)
            await caller.talk(mu_law(speech(10)))
            await caller.stop()
            assert await caller.closed() == 1000
            return caller

    with serve("--protocols", "twilio", "--token", TOKEN, "--slots", "1") as server:
        caller = run(visit(server.url))
    assert 4 <= len(caller.frames) <= 16, "at most the backlog of 4 frames came in addition"


def test_audio_counts_as_life_without_an_answer_to_pings(guarded: Running) -> None:
    """How Twilio answers pings is not documented. Without audio, this server would wait 1.5 s for one."""

    async def visit() -> int:
        async with phone(guarded.url, answers_pings=False) as caller:
            await caller.start(GIVEN)
            await caller.talk(SILENCE * 8 * 3000)
            await caller.stop()
            return await caller.closed()

    assert run(visit()) == 1000


# Who may call.


def test_a_server_with_a_token(guarded: Running) -> None:
    """A signature means nothing to it."""
    before = guarded.metric('pplex_refused_total{status="401"}')
    for parameters, result in (
        ({"token": TOKEN}, 200),
        ({"token": "Secret-key"}, 1008),
        ({"token": ""}, 1008),
        ({}, 1008),
    ):
        assert run(attempt(guarded.url, parameters)) == result, parameters
    assert run(attempt(guarded.url, {}, auth_token=AUTH_TOKEN)) == 1008
    assert guarded.metric('pplex_refused_total{status="401"}') == before + 4
    assert run(attempt(guarded.url, {}, headers={"Authorization": f"Bearer {TOKEN}"})) == 200
    log = guarded.log.read_text()
    assert "The parameter token is not a token of this server." in log and TOKEN not in log
    guarded.wait_for(lambda: is_free(guarded))


def test_a_server_with_an_auth_token(signed: Running) -> None:
    """It refuses before the upgrade, and names the address that it expects to be signed."""
    assert run(attempt(signed.url, {}, auth_token=AUTH_TOKEN)) == 200
    assert run(attempt(signed.url, {"token": "any"}, auth_token=AUTH_TOKEN)) == 200
    assert run(attempt(signed.url, {"token": TOKEN})) == 403
    for wrong in ("", "x", signature_of("wss://other.example/twilio", AUTH_TOKEN).decode()):
        assert run(attempt(signed.url, {}, headers={HEADER: wrong})) == 403
    status, reason, _ = ask(signed, PATH, {HEADER: "x", "Host": "voice.example"})
    assert status == 403 and "wss://voice.example/twilio" in reason and "--public-url" in reason
    assert AUTH_TOKEN not in signed.log.read_text()


def test_a_server_with_both_and_a_public_address(serve: Serve) -> None:
    public = {HEADER: signature_of("wss://voice.example/talk/twilio", AUTH_TOKEN).decode()}
    options = {
        "protocols": ("twilio",),
        "twilio_auth_token": AUTH_TOKEN,
        "tokens": (TOKEN,),
        "public_url": "https://voice.example/talk/twilio",
    }
    with serve(limits={}, options=options) as both:
        assert run(attempt(both.url, {}, headers=public)) == 200
        assert run(attempt(both.url, {"token": TOKEN})) == 200
        assert run(attempt(both.url, {"token": "wrong"})) == 1008
        assert run(attempt(both.url, {"token": TOKEN}, auth_token=AUTH_TOKEN)) == 403  # signed for another address


def test_the_protocol_is_off_unless_it_is_chosen(server: Running, signed: Running) -> None:
    assert ask(server, PATH)[0] == 404
    assert (
        ask(signed, PATH, {HEADER: signature_of(f"wss://127.0.0.1:{signed.port}{PATH}", AUTH_TOKEN).decode()})[0] == 426
    )
    assert ask(signed, PATH, {"Origin": "https://elsewhere.example"})[0] == 403


# Refusals after the upgrade, and ends.


def test_a_wrong_start_takes_no_slot(signed: Running) -> None:
    async def visit(parameters: dict[str, str], **other: Any) -> int:
        async with phone(signed.url, AUTH_TOKEN) as caller:
            await caller.start(parameters, **other)
            return await caller.closed()

    before = signed.metric('pplex_refused_total{status="400"}')
    long = {f"persona_{number}": "a salad and " * 40 for number in range(1, 50)}
    assert run(visit({"voice": "bob"})) == 1008
    assert run(visit(long)) == 1008
    assert run(visit({}, mediaFormat={"encoding": "audio/x-l16", "sampleRate": 16000, "channels": 1})) == 1008
    assert signed.metric('pplex_refused_total{status="400"}') == before + 3
    assert is_free(signed)


def test_a_socket_without_a_start_is_closed_soon(signed: Running) -> None:
    async def visit() -> int:
        async with phone(signed.url, AUTH_TOKEN) as caller:
            await caller.ws.send_str('{"event":"connected","protocol":"Call","version":"1.0.0"}')
            return await caller.closed()

    assert run(visit()) == 1008


@pytest.mark.parametrize("stage", ["connected", "started", "talking"])
@pytest.mark.parametrize("how", ["stop", "close", "drop"])
def test_hanging_up_in_every_state_frees_the_slot(guarded: Running, stage: str, how: str) -> None:
    """At once: nobody returns to a call."""

    async def visit() -> None:
        async with phone(guarded.url) as caller:
            if stage != "connected":
                await caller.start(GIVEN)
            if stage == "talking":
                await caller.talk(mu_law(speech(2)))
                await caller.replies(1)
            if how == "stop":
                await caller.stop()
                assert await caller.closed() == 1000
            elif how == "close":
                await caller.ws.close()
            else:
                caller.drop()
            guarded.wait_for(lambda: is_free(guarded), 5)

    run(visit())


def test_a_shutdown_closes(serve: Serve) -> None:
    async def visit(server: Running) -> int:
        async with phone(server.url, headers={"Authorization": f"Bearer {TOKEN}"}) as caller:
            await caller.start()
            await caller.media(SILENCE * 640)
            await caller.replies(1)
            server.process.send_signal(signal.SIGTERM)
            return await caller.closed()

    arguments = ("--protocols", "twilio", "--token", TOKEN, "--slots", "1", "--drain-seconds", "0.5")
    with suppress(AssertionError), serve(*arguments) as server:
        code = run(visit(server))
        server.process.wait(20)
    assert code == 1001
