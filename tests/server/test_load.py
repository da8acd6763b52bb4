"""The figures of a load, the messages of its sessions, and the command against the real server."""

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from callers import speech
from click.testing import CliRunner, Result
from serving import Running, Serve

from pplex.cli import main
from pplex.server.formats import make_receiver, make_sender
from pplex.server.frame_counter import FrameCounter
from pplex.server.load_options import ALL_FORMATS, FORMATS
from pplex.server.load_protocols import make_wire
from pplex.server.load_report import Gaps, LoadReport, SessionLog, Spread, server_side, summarize
from pplex.server.load_wire import Asked, Complaint, Ready, Replied
from pplex.server.metrics import Metrics
from pplex.server.sounds import BY_LABEL, SoundReceiver, SoundSender
from pplex.server.speakers import make_speaker

# Figures.


def session(frames: int, latency_s: float = 0.02, ready_s: float = 100.0) -> SessionLog:
    """A session whose frames are all answered after `latency_s`."""
    log = SessionLog(asked_s=ready_s - 0.5, ready_s=ready_s)
    for frame in range(frames):
        log.sent_s.append(ready_s + 0.08 * (frame + 1))
        log.replied(log.sent_s[-1] + latency_s)
    return log


def report(*logs: SessionLog) -> LoadReport:
    return summarize("a load", logs, None, False, {})


def test_percentiles_in_milliseconds() -> None:
    spread = Spread.of([i / 1000 for i in range(101)])
    assert spread == Spread(101, 50.0, 95.0, 99.0, 100.0)
    assert Spread.of([]) == Spread(0, None, None, None, None)


def test_a_gap_is_a_pause_of_more_than_120_ms() -> None:
    assert Gaps.of([0.08, 0.119, 0.121, 0.3]) == Gaps(2, 300.0)
    assert Gaps.of([]) == Gaps(0, None)


def test_first_second_is_reported_separately() -> None:
    log = session(25)
    for frame in range(12):  # these are sent within it
        log.replied_s[frame] += 0.05
    result = report(log)
    assert result.latency["warm-up"] == Spread(12, 70.0, 70.0, 70.0, 70.0)
    assert result.latency["speech"] == Spread(13, 20.0, 20.0, 20.0, 20.0)
    assert result.gaps["warm-up"].largest_ms == result.gaps["speech"].largest_ms == 80.0
    assert result.handshake.p50_ms == 500.0 and result.passed


def test_a_pause_counts_in_the_phase_where_it_ends() -> None:
    log = session(30)
    log.replied_s[20:] = [moment + 0.2 for moment in log.replied_s[20:]]
    assert report(log).gaps == {"speech": Gaps(1, 280.0), "warm-up": Gaps(0, 80.0)}


def test_frames_neither_answered_nor_dropped_are_missing() -> None:
    short, dropping, long = session(10), session(10), session(10)
    short.sent_s += [200.0, 201.0]
    dropping.sent_s += [200.0, 201.0]
    dropping.dropped = 2
    long.replied(300.0)
    result = report(short, dropping, long)
    assert result.frames == {"sent": 34, "answered": 31, "dropped": 2, "missing": 2, "surplus": 1, "unpaired": 0}
    assert not result.passed and report(dropping).passed
    assert not report(short).passed and not report(long).passed


def test_replies_after_a_drop_answer_later_frames() -> None:
    log = SessionLog(asked_s=0.0, ready_s=0.0, sent_s=[2.0, 2.08, 2.16, 2.24])
    log.replied(2.01)
    log.dropped = 2
    log.replied(2.25)
    assert log.deficit == 0
    assert report(log).latency["speech"].max_ms == pytest.approx(10.0)


def test_replies_to_silence_that_the_server_fed_are_no_fault() -> None:
    log = SessionLog("live", has_pauses=True, asked_s=0.0, ready_s=0.0, sent_s=[2.0])
    log.replied(2.01)
    log.replied(2.3)  # nothing was sent for 200 ms
    log.sent_s.append(2.4)
    log.replied(2.42)
    result = report(log)
    assert (result.frames["answered"], result.frames["unpaired"], result.frames["surplus"]) == (2, 1, 0)
    assert result.latency["speech"].max_ms == pytest.approx(20.0) and result.passed
    assert "unpaired" in result.to_text()


def test_responses_have_no_latency_and_pauses_between_them_are_no_gaps() -> None:
    log = SessionLog("realtime", answers_all=False, asked_s=0.0, ready_s=0.0, sent_s=[2.0, 2.08, 2.16])
    for moment, begins in ((2.1, True), (2.2, False), (5.0, True), (5.3, False)):
        log.replied(moment, begins=begins)
    result = report(log)
    assert result.gaps["speech"] == Gaps(1, 300.0) and result.latency["speech"].count == 0
    assert (result.frames["answered"], result.frames["unpaired"], result.frames["missing"]) == (0, 4, 0)
    assert result.passed


def test_each_protocol_has_its_own_figures() -> None:
    slow = session(20, latency_s=0.05)
    slow.protocol = "live"
    slow.sent_s.append(200.0)
    result = report(session(20), slow)
    assert result.protocol == "chat,live" and report(slow).parts == {}
    chat, live = result.parts["chat"], result.parts["live"]
    assert (chat.latency["speech"].max_ms, live.latency["speech"].max_ms) == (20.0, 50.0)
    assert (chat.frames["missing"], live.frames["missing"], result.frames["missing"]) == (0, 1, 1)
    assert "frames of live: 21 sent" in result.to_text()


def test_failure_reasons_are_counted() -> None:
    logs = [SessionLog(asked_s=1.0, refused="503 full"), SessionLog(asked_s=1.0, refused="503 full"), SessionLog()]
    logs += [SessionLog(asked_s=1.0, ready_s=2.0, failed="lost")]
    result = report(*logs)
    assert result.sessions == {"asked": 3, "ready": 1, "refused": 2, "failed": 1}
    assert (result.refused, result.failed) == ({"503 full": 2}, {"lost": 1})
    assert not result.passed
    assert "refused: 2 x 503 full" in result.to_text() and "failed: 1 x lost" in result.to_text()


def test_server_counts_exclude_those_before_the_load() -> None:
    metrics = Metrics()
    metrics.late_frames.inc(5)
    metrics.loop_lag.observe(1.0)  # before the load
    metrics.dropped_frames.labels("outbox").inc()
    before = metrics.text().decode()
    metrics.late_frames.inc(2)
    metrics.dropped_frames.labels("backlog").inc(3)
    for _ in range(99):
        metrics.loop_lag.observe(0.0015)
    metrics.loop_lag.observe(0.07)
    side = server_side(before, metrics.text().decode(), 1.0)
    assert (side.late_frames, side.dropped_frames, side.event_loop_lag_p99_ms) == (2, {"backlog": 3}, 2.0)
    nothing = server_side(before, before, 1.0)
    assert (nothing.late_frames, nothing.dropped_frames, nothing.event_loop_lag_p99_ms) == (0, {}, None)
    assert server_side("", "", 1.0).late_frames is None


# Messages and their counts.


@pytest.mark.parametrize("audio", ALL_FORMATS)
def test_generated_messages_are_decoded_by_the_server(audio: str) -> None:
    pcm = speech(25).reshape(-1)
    receiver: Any = SoundReceiver(BY_LABEL[audio]) if audio in BY_LABEL else make_receiver(audio)
    heard, said = [], 0
    for payload, samples in islice(make_speaker(audio, pcm).messages(0.0, 1), 52):
        heard.append(receiver.push(payload, limit=24_000).pcm)
        said += samples
        assert sum(map(len, heard)) == said  # nothing waits for the next message
    # Delay in samples: of the encoder, and of the filter from 48 kHz; of the filters in both directions.
    delay = {"opus": 60 + 19, "pcm-16k": 60, "pcmu-8k": 72, "pcma-8k": 72}.get(audio, 0)
    whole = np.concatenate(heard)[delay:][: 24_000 // 2]
    assert np.corrcoef(whole, pcm[: len(whole)])[0, 1] > 0.9


@pytest.mark.parametrize("audio", ALL_FORMATS)
def test_a_recording_loops_and_sessions_start_at_different_places(audio: str) -> None:
    speaker = make_speaker(audio, speech(2).reshape(-1))
    headers, messages = (2, 4) if audio == "opus" else (0, 8)
    said = [payload for payload, _ in islice(speaker.messages(0.5, 1), headers + 2 * messages)][headers:]
    if audio == "opus":
        said = [page[27:] for page in said]  # without number and checksum
    assert said[:messages] == said[messages:]
    assert len(set(said)) == messages
    first = [payload for payload, _ in islice(speaker.messages(0.0, 1), headers + messages)][headers:]
    assert said[0].endswith(first[messages // 2][27:])


@pytest.mark.parametrize("audio", ALL_FORMATS)
def test_replies_are_counted_in_frames(audio: str) -> None:
    counter = FrameCounter(audio)
    sender: Any = SoundSender(BY_LABEL[audio]) if audio in BY_LABEL else make_sender(audio)
    for frame in speech(3):
        sent = sender.frame(frame)
        assert sum(counter.push(payload) for payload in ([sent] if isinstance(sent, bytes) else sent)) == 1


# Protocols without a server of their own here.


def test_a_call_of_twilio_begins_with_a_frame_whose_reply_means_ready() -> None:
    wire = make_wire("twilio", Asked("pcmu-8k", voice="NATM1", persona="Be kind. " * 80, seed=7, token="secret"))
    messages = [json.loads(message) for message in [*wire.begin(), wire.audio(bytes(160)), *wire.end()]]
    assert [message["event"] for message in messages] == ["connected", "start", *["media"] * 5, "stop"]
    start = messages[1]["start"]
    parameters = start["customParameters"]
    persona = [parameters.pop("persona"), parameters.pop("persona_2")]
    assert " ".join(persona) == ("Be kind. " * 80).strip() and max(map(len, persona)) < 490
    assert parameters == {"voice": "NATM1", "seed": "7", "token": "secret"}
    assert start["mediaFormat"] == {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    media = [message["media"] for message in messages[2:7]]
    assert [(each["chunk"], each["timestamp"]) for each in media] == [(str(i + 1), str(20 * i)) for i in range(5)]
    assert all(message["streamSid"] == start["streamSid"] for message in messages[1:])
    assert [message["sequenceNumber"] for message in messages[1:]] == [str(i + 1) for i in range(7)]
    payload = base64.b64encode(bytes(640)).decode()
    reply = json.dumps({"event": "media", "streamSid": start["streamSid"], "media": {"payload": payload}})
    assert wire.parse(json.dumps({"event": "mark", "streamSid": start["streamSid"]})) is None
    assert [wire.parse(reply), wire.parse(reply)] == [Ready(), Replied(1)]


def test_a_realtime_session_is_ready_with_its_first_audio() -> None:
    wire = make_wire("realtime", Asked("pcmu-8k", voice="marin", persona="You are kind."))
    update, create, append = map(json.loads, wire.begin())
    assert (update["type"], create["type"]) == ("session.update", "response.create")
    assert base64.b64decode(append["audio"]) == b"\xff" * 640
    assert update["session"]["instructions"] == "You are kind."
    assert update["session"]["audio"]["output"] == {"format": {"type": "audio/pcmu"}, "voice": "marin"}
    assert json.loads(wire.audio(b"abc"))["audio"] == base64.b64encode(b"abc").decode()
    delta = base64.b64encode(bytes(640)).decode()
    events = [{"type": kind} for kind in ("session.created", "response.created", "response.output_item.added")]
    events += [{"type": "response.output_audio.delta", "delta": delta}] * 3
    events += [{"type": "response.done"}, {"type": "response.created"}, events[-1]]
    events += [{"type": "error", "error": {"message": "a fault"}}]
    said = [event for given in events if (event := wire.parse(json.dumps(given))) is not None]
    assert said == [Ready(), Replied(1, True), Replied(1), Replied(1, True), Complaint("a fault")]
    silent = make_wire("realtime", Asked("pcm-24k"))
    assert [silent.parse(json.dumps({"type": kind})) for kind in ("response.created", "response.done")] == [
        None,
        Ready(),
    ]


# The command.

FOREIGN = """
import asyncio
from aiohttp import web
async def talk(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    await ws.send_str('["hello"]')
    await ws.receive()
    return ws
async def serve():
    app = web.Application()
    app.router.add_get("/v1/live/sessions", talk)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(serve())
"""


@pytest.fixture(scope="module")
def small(serve: Serve) -> Iterator[Running]:
    """One slot, a queue of one, a token, and a certificate of its own."""
    with serve("--slots", "1", "--queue", "1", "--token", "a token", "--self-signed") as running:
        yield running


@pytest.fixture(scope="module")
def patient(serve: Serve) -> Iterator[Running]:
    """4 slots. On a busy machine, a client of GPT-Live that is late loses nothing here."""
    with serve(limits={"silence_after_s": 5.0, "backlog_frames": 25}) as running:
        yield running


def load(url: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["load", url, "--minutes", "0.02", *options])


@pytest.mark.parametrize("audio", FORMATS["chat"])
def test_every_frame_is_answered(server: Running, tmp_path: Path, audio: str) -> None:
    wavs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for seed, wav in enumerate(wavs):
        soundfile.write(wav, speech(7, seed).reshape(-1), 24_000)
    options = [*("--wav", str(wavs[0]), "--wav", str(wavs[1])), "--join-seconds", "0.2", "--voice", "VARF2"]
    options += [*("--persona", "You are kind.", "--persona", "You are not."), "--seed", "5"]
    out = tmp_path / "load.json"
    result = load(server.url, "--sessions", "3", "--audio", audio, "--json", "--out", str(out), *options)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures == json.loads(out.read_text())
    assert figures["sessions"] == {"asked": 3, "ready": 3, "refused": 0, "failed": 0}
    frames = figures["frames"]
    assert frames["sent"] == frames["answered"] + frames["dropped"] > 0 and not frames["missing"]
    assert figures["latency"]["warm-up"]["count"] + figures["latency"]["speech"]["count"] == frames["answered"]
    assert figures["handshake"]["count"] == 3 and figures["send_lag"]["count"] > 0
    assert figures["server"]["late_frames"] is not None
    assert figures["machine"]["aiohttp"] and figures["passed"]
    server.wait_for(lambda: server.state()["used"] == 0)


@pytest.mark.parametrize("audio", FORMATS["live"])
def test_every_frame_is_answered_over_gpt_live(patient: Running, audio: str) -> None:
    options = ["--persona", "You are kind.", "--voice", "marin", "--seed", "5", "--scatter"]
    result = load(patient.url, "--protocol", "live", "--sessions", "3", "--audio", audio, "--json", *options)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["protocol"] == "live" and figures["parts"] == {} and audio in figures["title"]
    frames, latency = figures["frames"], figures["latency"]
    assert frames["sent"] == frames["answered"] > 0 and figures["handshake"]["count"] == 3
    assert latency["warm-up"]["count"] + latency["speech"]["count"] == frames["answered"]
    patient.wait_for(lambda: patient.state()["used"] == 0)


def test_every_frame_of_a_telephone_call_is_answered(serve: Serve) -> None:
    with serve("--slots", "4", "--protocols", "twilio", "--token", "secret", "--backlog", "25") as server:
        options = ["--protocol", "twilio", "--sessions", "3", "--seed", "5", "--persona", "You are kind."]
        result = load(server.url, *options, "--token", "secret", "--json")
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)
        assert figures["frames"]["sent"] == figures["frames"]["answered"] > 0 and figures["handshake"]["count"] == 3
        result = load(server.url, *options, "--token", "wrong")
        assert result.exit_code == 1 and "3 x 1008 The parameter token" in result.stdout


@pytest.mark.parametrize("audio", FORMATS["realtime"])
def test_responses_over_realtime_are_counted(patient: Running, audio: str) -> None:
    options = ["--protocol", "realtime", "--sessions", "3", "--voice", "marin", "--seed", "5"]
    result = load(patient.url, *options, "--audio", audio, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    frames = figures["frames"]
    assert frames["sent"] > 0 and frames["unpaired"] > 0 == frames["answered"] == frames["missing"]
    assert figures["handshake"]["count"] == 3 and figures["gaps"]["warm-up"]["largest_ms"] > 0
    result = load(patient.url, *options, "--voice", "nobody")
    assert result.exit_code == 1 and "3 x session.audio.output.voice must be" in result.stdout
    patient.wait_for(lambda: patient.state()["used"] == 0)


def test_sessions_take_protocols_in_turn(patient: Running) -> None:
    result = load(patient.url, "--protocol", "chat,live", "--sessions", "3", "--audio", "pcma-8k", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["protocol"] == "chat,live" and "chat opus, live pcma-8k" in figures["title"]
    parts = figures["parts"]
    assert [parts[name]["sessions"]["ready"] for name in ("chat", "live")] == [2, 1]
    assert sum(parts[name]["frames"]["answered"] for name in parts) == figures["frames"]["answered"]
    patient.wait_for(lambda: patient.state()["used"] == 0)


def test_what_gpt_live_refuses_is_reported(server: Running, small: Running) -> None:
    result = load(server.url, "--protocol", "live", "--sessions", "1", "--voice", "nobody")
    assert result.exit_code == 1 and "1 x 1008 session.audio.output.voice must be" in result.stdout
    result = load(small.url, "--protocol", "live", "--sessions", "1", "--insecure")
    assert result.exit_code == 1 and "1 x 401 This server needs a token" in result.stdout
    result = load(small.url, "--protocol", "live", "--sessions", "3", "--insecure", "--token", "a token")
    assert result.exit_code == 1 and "3 asked, 1 ready, 1 refused, 1 failed" in result.stdout
    assert "no handshake before the load was over" in result.stdout


def test_a_server_of_another_kind_is_reported() -> None:
    """It speaks WebSocket, but not this protocol."""
    command = [sys.executable, "-c", FOREIGN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"ws://127.0.0.1:{process.stdout.readline().strip()}"
        result = load(url, "--protocol", "live", "--sessions", "2")
        process.kill()
    assert result.exit_code == 1 and "2 x The server sent what is no message of the protocol live" in result.stdout


def test_protocols_and_formats_that_do_not_fit_are_usage_errors() -> None:
    for options, words in (
        (("--protocol", "live", "--audio", "opus"), "opus is not a format of live: live has pcm-24k"),
        (("--protocol", "telegraph"), "Choose from chat, live"),
    ):
        result = load("ws://127.0.0.1:1", *options)
        assert result.exit_code == 2 and words in " ".join(result.stderr.split())


def test_refused_and_waiting_sessions_fail_the_load(small: Running) -> None:
    result = load(small.url, "--sessions", "3", "--insecure", "--token", "a token")
    assert result.exit_code == 1 and "late frames" in result.stdout
    assert "3 asked, 1 ready, 1 refused, 1 failed" in result.stdout
    assert "1 x 503" in result.stdout and "1 x no handshake before the load was over" in result.stdout


def test_sessions_without_token_or_trusted_certificate_fail(small: Running) -> None:
    result = load(small.url, "--sessions", "2", "--insecure")
    assert result.exit_code == 1 and "2 x 401 This server needs a token" in result.stdout
    result = load(small.url, "--sessions", "2")
    assert result.exit_code == 1 and "--insecure" in result.stdout


def test_an_unreachable_server_and_missing_files_are_reported(tmp_path: Path) -> None:
    result = load("ws://127.0.0.1:1", "--sessions", "2")
    assert result.exit_code == 1 and "2 x ws://127.0.0.1:1 cannot be reached" in result.stdout
    assert "unknown, its /metrics cannot be read" in result.stdout
    result = load("127.0.0.1")
    assert result.exit_code == 2 and "not the address of a server" in result.stderr
    result = load("ws://127.0.0.1:1", "--wav", str(tmp_path / "none.wav"))
    assert result.exit_code == 1 and "does not exist" in result.stderr
    result = load("ws://127.0.0.1:1", "--out", str(tmp_path / "none/load.json"))
    assert result.exit_code == 1 and "does not exist" in result.stderr


def test_ctrl_c_shows_the_results_so_far(server: Running) -> None:
    before = server.metric("pplex_frames_total")
    command = [sys.executable, "-c", "from pplex.cli import main; main()", "load", server.url, "--sessions", "2"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        server.wait_for(lambda: server.metric("pplex_frames_total") > before + 5, 30)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    figures = json.loads(output)
    assert process.returncode == 0 and figures["interrupted"]
    assert figures["frames"]["answered"] > 5 and not figures["frames"]["missing"]
    server.wait_for(lambda: server.state()["used"] == 0)
