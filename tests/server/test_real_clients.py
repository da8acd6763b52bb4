"""Clients that other people wrote, unmodified, against the real server. `make test` installs them into .venv/clients.

Only the sound card has a stand-in, and the agent sings: each of its frames is a different tone, so that what its user hears
can be compared with the frames that it sent.
"""

import asyncio
import ctypes.util
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import callers
import numpy as np
import pytest
import tones
from callers import call, run
from chromium_tab import chromium_tab
from folders import TINY
from serving import Running, Serve

HERE = Path(__file__).parent
CLIENTS = Path(sys.prefix) / "clients"
VOICE = TINY / "checkpoint/voices/synthetic.wav"
OPUS_RECORDER = ("recorder.min.js", "encoderWorker.min.js", "decoderWorker.min.js", "decoderWorker.min.wasm")
FRAMES = 20  # of the agent; each client must play them
PATIENCE_S = 20

needs_clients = pytest.mark.skipif(
    not (CLIENTS / "moshi").is_dir(),
    reason="other people's clients are not installed in .venv/clients: make test does so on x86-64 Linux",
)
needs_opus_recorder = pytest.mark.skipif(
    not (CLIENTS / "node_modules/opus-recorder").is_dir(),
    reason="opus-recorder is not installed in .venv/clients: make test installs it if npm is available",
)
needs_opus = pytest.mark.skipif(
    ctypes.util.find_library("opus") is None, reason="libopus is not installed: apt-get install libopus0"
)
needs_sphn = pytest.mark.skipif(importlib.util.find_spec("sphn") is None, reason="sphn has no wheel for this machine")
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: apt-get install ffmpeg"
)


@pytest.fixture(scope="module")
def singing(serve: Serve) -> Iterator[Running]:
    """A server whose agent sings; every test frees its slot."""
    with serve("--slots", "2", "--resume-seconds", "0", prelude=tones.PRELUDE) as server:
        yield server


class Client:
    """A running foreign program, and the audio that it has played."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path):
        self.process, self._log, self._played = process, folder / "client.log", folder / "played.f32"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def played(self) -> np.ndarray:
        return np.frombuffer(self._played.read_bytes() if self._played.exists() else b"", "<f4")

    def listen(self, rate_hz: int, frames: int = FRAMES) -> None:
        """Wait until the audio of `frames` agent frames was played."""
        end = time.monotonic() + PATIENCE_S
        while np.count_nonzero(self.played) < frames * tones.FRAME_S * rate_hz:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < end, f"it played {np.count_nonzero(self.played)} samples:\n{self.log}"
            time.sleep(0.05)

    def interrupt(self) -> int:
        """Send Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@contextmanager
def client(folder: Path, *arguments: str) -> Iterator[Client]:
    """`python ARGUMENTS` with the client's packages and our sound card."""
    path = os.pathsep.join(map(str, (HERE / "sound_card", CLIENTS)))
    sound = {"MICROPHONE": str(VOICE), "LOUDSPEAKER": str(folder / "played.f32")}
    with (folder / "client.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path, **sound}, stdout=log, stderr=log
        )
    with process:
        try:
            yield Client(process, folder)
        finally:
            process.kill()


def last_conversation(server: Running) -> dict[str, Any]:
    """The close reason of the server's last conversation; its slot is free again."""
    server.wait_for(lambda: server.state()["used"] == 0)
    return [event for event in server.events() if event["event"] == "conversation ended"][-1]


# Kyutai's Python client: no query, Ogg from sphn, any kind of message.


@needs_clients
@needs_sphn
def test_moshi_client_plays_every_frame(singing: Running, tmp_path: Path) -> None:
    before = singing.metric("pplex_frames_total")
    with client(tmp_path, "-m", "moshi.client", "--port", str(singing.port)) as moshi:
        moshi.listen(24_000)
        said = singing.metric("pplex_frames_total") - before
        assert moshi.interrupt() == 0, moshi.log
    heard = tones.assert_all_heard(moshi.played, 24_000, FRAMES)
    assert last_conversation(singing)["cause"] == "client"
    assert said - heard <= 6, "its loudspeaker is more than half a second behind"
    assert "Lost connection" not in moshi.log and "All done!" in moshi.log


# A client that takes the first message as the handshake, and a page as a packet. Its pages claim one segment of 255
# bytes at most, whatever they hold.


@needs_clients
@needs_opus
def test_fujielab_client_plays_every_frame(singing: Running, tmp_path: Path) -> None:
    url, bad = f"ws://localhost:{singing.port}/api/chat", singing.metric("pplex_bad_audio_total")
    with client(tmp_path, "-m", "fujielab.moshi.simple_moshi_client", "--server", url) as fujielab:
        fujielab.listen(16_000)
        assert fujielab.interrupt() == 0, fujielab.log
    tones.assert_all_heard(fujielab.played, 16_000, FRAMES)
    assert last_conversation(singing)["cause"] == "client"
    assert singing.metric("pplex_bad_audio_total") == bad, "its loud packets are longer than its pages say"
    assert "Connected!" in fujielab.log and "Error" not in fujielab.log


@needs_clients
@needs_opus
def test_fujielab_client_waits_in_the_queue(serve: Serve, tmp_path: Path) -> None:
    """It also takes a ping as a failed handshake."""

    async def hold_the_slot(url: str, seconds: float) -> None:
        async with call(url) as caller:
            await caller.handshake()
            await asyncio.sleep(seconds)
            await caller.ws.close()

    with serve("--slots", "1", prelude=tones.PRELUDE) as server, ThreadPoolExecutor(1) as elsewhere:
        held = elsewhere.submit(run, hold_the_slot(server.url, 5))
        server.wait_for(lambda: server.state()["used"] == 1)
        url = f"ws://localhost:{server.port}/api/chat"
        with client(tmp_path, "-m", "fujielab.moshi.simple_moshi_client", "--server", url) as fujielab:
            server.wait_for(lambda: server.state()["queued"] == 1)
            held.result()
            fujielab.listen(16_000, frames=5)
    tones.assert_all_heard(fujielab.played, 16_000, 5)


# LiveKit's plugin waits for the handshake; for it, a turn ends when no audio arrives.


@needs_clients
@needs_sphn
def test_livekit_plugin_plays_every_frame(singing: Running, tmp_path: Path) -> None:
    with client(tmp_path, str(HERE / "livekit_caller.py"), singing.url) as livekit:
        livekit.listen(24_000)
        assert livekit.interrupt() == 0, livekit.log
    tones.assert_all_heard(livekit.played, 24_000, FRAMES)
    assert last_conversation(singing)["cause"] == "client"
    assert "rror" not in livekit.log, livekit.log


# ffmpeg only encodes and decodes: we send its pages in pieces of any size, and it decodes ours.


@needs_ffmpeg
def test_ffmpeg_streams_are_exchanged_both_ways(singing: Running) -> None:
    frames = callers.speech(FRAMES + 8)
    spoken = ffmpeg(frames.tobytes(), "-f f32le -ar 24000 -ac 1", "-c:a libopus -page_duration 20000 -f ogg")

    async def converse() -> bytes:
        async with call(singing.url, audio="opus") as caller:
            await caller.handshake()
            for at in range(0, len(spoken), 700):
                await caller.ws.send_bytes(b"\1" + spoken[at : at + 700])
                await asyncio.sleep(0.05)
            await caller.until(lambda: len(caller.all("audio")) >= FRAMES + 2)  # the headers come in two messages
            await caller.ws.close()
            return b"".join(caller.all("audio"))

    bad = singing.metric("pplex_bad_audio_total")
    said = ffmpeg(run(converse()), "-f ogg", "-f f32le -ar 24000 -ac 1")
    tones.assert_all_heard(np.frombuffer(said, "<f4"), 24_000, FRAMES)
    assert singing.metric("pplex_bad_audio_total") == bad
    assert last_conversation(singing)["cause"] == "client"


def ffmpeg(data: bytes, taken: str, made: str) -> bytes:
    """`data` through a pipe of ffmpeg, from one format to another."""
    command = ["ffmpeg", "-v", "error", *taken.split(), "-i", "pipe:0", *made.split(), "pipe:1"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S).stdout


# The codec of the reference's web client, in a browser; our page around it uses that client's timing.


@needs_opus_recorder
def test_opus_recorder_plays_every_frame(serve: Serve, tmp_path: Path) -> None:
    rate = 48_000
    for name in OPUS_RECORDER:
        shutil.copy(CLIENTS / "node_modules/opus-recorder/dist" / name, tmp_path)
    shutil.copy(HERE / "opus_recorder.html", tmp_path / "index.html")
    with serve("--slots", "1", "--static", str(tmp_path), prelude=tones.PRELUDE) as server, chromium_tab(VOICE) as tab:
        tab.goto(server.url)
        tab.evaluate(f"() => {{ window.state = talk({rate}); }}")
        tab.wait_for_function(f"state.heard.length >= {FRAMES * tones.FRAME_S * rate}", timeout=PATIENCE_S * 1000)
        state = tab.evaluate("async () => { const now = { ...state }; await state.hangUp(); return now; }")
        assert last_conversation(server)["cause"] == "client"
    tones.assert_all_heard(np.array(state["heard"], np.float32), rate, FRAMES)
    assert state["handshakeMs"] >= 1000, "its decoder was not ready yet"
    assert state["decoded"][0] - state["messages"][0] < 400  # ms: pages are sent one by one
