"""A load test: holds many conversations at once in real time, and records the times of replies. Called by `cli.serving`.

The schedule of a session's messages, and our own delay (`send lag`):

    handshake --- 0 (scatter: 0-80 ms) --- 20 or 40 ms --- 20 or 40 ms --- ...      the schedule, from one clock
                                     message         message                  `send lag`: the message's delay
"""

import asyncio
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext

import aiohttp

from pplex.measure.machine import machine
from pplex.runtime.audio import read_audio
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.synthetic_speech import speech_like
from pplex.server.chat_messages import Kind
from pplex.server.client import AudioFormat
from pplex.server.client_link import Link, RefusedError, ServerError, server_url
from pplex.server.event_loop import loop_factory
from pplex.server.load_report import WARM_UP_S, LoadReport, SessionLog, server_side, summarize
from pplex.server.speakers import FrameCounter, Message, Speaker, make_speaker
from pplex.server.wire import FRAME_S, FRAME_SIZE

SPEECH_FRAMES = 375  # half a minute, if no wav is given
GRACE_S = 3.0  # wait for the last replies
METRICS_S = 5.0
WATCH_S = 0.5

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Load:
    """The load for a server: `sessions` conversations that all speak until `minutes` after the last one joined."""

    url: str
    sessions: int = 16
    minutes: float = 2.0
    audio: AudioFormat = "opus"
    wavs: tuple[Path, ...] = ()  # without a recording: `speech_like`
    join_s: float = 0.0
    scatter: bool = False  # each starts a random part of a frame after its handshake, like a real microphone
    voice: str | None = None
    personas: tuple[str, ...] = ()
    seed: int | None = None
    token: str | None = None
    ssl: SSLContext | bool = True


def run_load(load: Load, progress: Progress = lambda state: None) -> LoadReport:
    """Run the load until it is over. Ctrl-C ends it early, with the figures until then.

    Raises AudioError for an unreadable wav. Refusals and failures are in the report.
    """
    recordings = [read_audio(wav) for wav in load.wavs] or [speech_like(SPEECH_FRAMES, FRAME_SIZE, load.seed or 0)]
    speakers = [make_speaker(load.audio, pcm) for pcm in recordings]
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_load(load, speakers, progress))


async def _load(load: Load, speakers: Sequence[Speaker], progress: Progress) -> LoadReport:
    return await _Run(load, speakers, progress).run()


class _Run:
    """The sessions of one load and their logs."""

    def __init__(self, load: Load, speakers: Sequence[Speaker], progress: Progress):
        self._load, self._speakers, self._progress = load, speakers, progress
        self._random = random.Random(load.seed)
        self._logs = [SessionLog() for _ in range(load.sessions)]
        self._waiting: set[asyncio.Task[None]] = set()  # sessions without a handshake
        self._over = self._interrupted = False

    async def run(self) -> LoadReport:
        load, loop = self._load, asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._interrupt)
        began, before = time.perf_counter(), await self._metrics()
        ending = loop.call_later(load.join_s + 60 * load.minutes, self._end)
        watching, warming = asyncio.create_task(self._watch()), asyncio.create_task(self._read_warm())
        sessions = [asyncio.create_task(self._session(index, log)) for index, log in enumerate(self._logs)]
        await asyncio.wait(sessions)
        ending.cancel()
        watching.cancel()
        warm = warming.result() if warming.done() else None
        warming.cancel()
        for session in sessions:
            if not session.cancelled():
                session.result()
        after, seconds = await self._metrics(), time.perf_counter() - began
        return summarize(
            f"{load.sessions} sessions, {load.minutes:g} min of {load.audio}, {load.url}",
            self._logs,
            server_side(before, after, seconds, warm) if before and after else None,
            self._interrupted,
            machine(None, "pplex-export", "aiohttp", "av", "numpy"),
        )

    def _interrupt(self) -> None:
        self._interrupted = True
        self._end()

    def _end(self) -> None:
        self._over = True
        for task in self._waiting:
            task.cancel()

    async def _session(self, index: int, log: SessionLog) -> None:
        """One session, from joining to hanging up. Failures are in the log."""
        start, join_s = index / self._load.sessions, self._random.uniform(0, self._load.join_s)
        phase_s, serial = self._random.uniform(0, FRAME_S if self._load.scatter else 0), self._random.getrandbits(32)
        messages = self._speakers[index % len(self._speakers)].messages(start, serial)
        try:
            link = await self._join(index, log, join_s)
        except RefusedError as error:
            log.refused = f"{error.status} {error.reason}"
        except ServerError as error:
            log.failed = str(error)
        else:
            await self._converse(link, log, messages, phase_s)

    async def _join(self, index: int, log: SessionLog, join_s: float) -> Link:
        """Connect and wait for the handshake, until the load is over."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            await asyncio.sleep(join_s)
            log.asked_s = time.perf_counter()
            link = await Link.open(self._load.url, self._query(index), self._load.token, self._load.ssl)
            try:
                await link.handshake()
            except BaseException:
                await link.abandon()
                raise
            log.ready_s = time.perf_counter()
            return link
        except asyncio.CancelledError:
            if log.asked_s is not None and not self._interrupted:
                log.failed = "no handshake before the load was over"
            raise
        finally:
            self._waiting.remove(task)

    def _query(self, index: int) -> dict[str, str]:
        load = self._load
        query = {
            "audio": load.audio,
            "voice_prompt": load.voice,
            "text_prompt": load.personas[index % len(load.personas)] if load.personas else None,
            "seed": None if load.seed is None else str(load.seed + index),
        }
        return {name: value for name, value in query.items() if value is not None}

    async def _converse(self, link: Link, log: SessionLog, messages: Iterator[Message], phase_s: float) -> None:
        """Speak until the load is over, and listen until all frames are answered."""
        listening = asyncio.create_task(self._listen(link, log))
        try:
            await self._speak(link, log, messages, phase_s, listening)
        except ServerError as error:
            log.failed = str(error)
        log.finished = True
        await asyncio.wait({listening}, timeout=GRACE_S if log.failed or log.deficit > 0 else 0)
        try:
            if listening.done():
                listening.result()
        except ServerError as error:
            log.failed = str(error)
        listening.cancel()
        await link.close()

    async def _speak(
        self, link: Link, log: SessionLog, messages: Iterator[Message], phase_s: float, listening: asyncio.Task[None]
    ) -> None:
        """Send each message at the time when a microphone has recorded its last sample. End with a whole frame."""
        due_s, samples_sent = time.perf_counter() + phase_s, 0
        for payload, samples in messages:
            due_s += samples / SAMPLE_RATE_HZ
            await asyncio.sleep(due_s - time.perf_counter())
            if listening.done() or (self._over and samples_sent % FRAME_SIZE == 0):
                return
            sent_s = time.perf_counter()
            await link.send_audio(payload)
            samples_sent += samples
            if samples:
                log.lags_s.append(sent_s - due_s)
                if samples_sent % FRAME_SIZE == 0:
                    log.sent_s.append(sent_s)

    async def _listen(self, link: Link, log: SessionLog) -> None:
        """Record every reply. Ends when the session has finished and no reply is due."""
        counter = FrameCounter(self._load.audio)
        while not (log.finished and log.deficit <= 0):
            kind, payload = await link.receive()
            if kind == Kind.AUDIO:
                log.replied(time.perf_counter(), counter.push(payload))
            elif kind == Kind.METADATA:
                metadata = json.loads(payload)
                if metadata.get("type") == "dropped":
                    log.dropped = metadata["frames"]

    async def _watch(self) -> None:
        while True:
            ready = sum(log.ready_s is not None for log in self._logs)
            failed = sum(bool(log.refused or log.failed) for log in self._logs)
            self._progress(f"{ready} of {len(self._logs)} sessions ready, {failed} refused or failed")
            await asyncio.sleep(WATCH_S)

    async def _read_warm(self) -> str | None:
        """The server's metrics a second after the last session has joined, if all join at once."""
        if self._load.join_s:
            return None
        while any(log.ready_s is None and not (log.refused or log.failed) for log in self._logs):
            await asyncio.sleep(WATCH_S / 10)
        await asyncio.sleep(WARM_UP_S)
        return await self._metrics()

    async def _metrics(self) -> str | None:
        """The server's /metrics; None if they cannot be read."""
        url = server_url(self._load.url, "/metrics")
        headers = {"Authorization": f"Bearer {self._load.token}"} if self._load.token else {}
        scheme = {"ws": "http", "wss": "https"}.get(url.scheme, url.scheme)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(METRICS_S), headers=headers) as http,
                http.get(url.with_scheme(scheme), ssl=self._load.ssl) as response,
            ):
                return await response.text() if response.ok else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
