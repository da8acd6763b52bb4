"""The figures of a load, the messages of its sessions, and the command against the real server."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from callers import speech
from click.testing import CliRunner, Result
from serving import Running, Serve

from pplex.cli import main
from pplex.server.formats import make_receiver, make_sender
from pplex.server.load_report import Gaps, LoadReport, SessionLog, Spread, server_side, summarize
from pplex.server.metrics import Metrics
from pplex.server.speakers import FrameCounter, make_speaker

AUDIO = ("opus", "s16", "f32")

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
    assert result.frames == {"sent": 34, "answered": 31, "dropped": 2, "missing": 2, "surplus": 1}
    assert not result.passed and report(dropping).passed
    assert not report(short).passed and not report(long).passed


def test_replies_after_a_drop_answer_later_frames() -> None:
    log = SessionLog(asked_s=0.0, ready_s=0.0, sent_s=[2.0, 2.08, 2.16, 2.24])
    log.replied(2.01)
    log.dropped = 2
    log.replied(2.25)
    assert log.deficit == 0
    assert report(log).latency["speech"].max_ms == pytest.approx(10.0)


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


@pytest.mark.parametrize("audio", AUDIO)
def test_generated_messages_are_decoded_by_the_server(audio: str) -> None:
    pcm = speech(25).reshape(-1)
    receiver, heard, said = make_receiver(audio), [], 0
    for payload, samples in islice(make_speaker(audio, pcm).messages(0.0, 1), 52):
        heard.append(receiver.push(payload, limit=24_000).pcm)
        said += samples
        assert sum(map(len, heard)) == said  # nothing waits for the next message
    assert not receiver.bad
    delay = 60 + 19 if audio == "opus" else 0  # delay in samples: of the encoder, and of the filter from 48 kHz
    whole = np.concatenate(heard)[delay:][: 24_000 // 2]
    assert np.corrcoef(whole, pcm[: len(whole)])[0, 1] > 0.9


@pytest.mark.parametrize("audio", AUDIO)
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


@pytest.mark.parametrize("audio", AUDIO)
def test_replies_are_counted_in_frames(audio: str) -> None:
    sender, counter = make_sender(audio), FrameCounter(audio)
    for frame in speech(3):
        assert sum(counter.push(payload) for payload in sender.frame(frame)) == 1


# The command.


@pytest.fixture(scope="module")
def small(serve: Serve) -> Iterator[Running]:
    """One slot, a queue of one, a token, and a certificate of its own."""
    with serve("--slots", "1", "--queue", "1", "--token", "a token", "--self-signed") as running:
        yield running


def load(url: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["load", url, "--minutes", "0.02", *options])


@pytest.mark.parametrize("audio", AUDIO)
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
