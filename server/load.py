"""A load test: holds many conversations at once in real time, and records the times of replies. Called by `cli.serving`."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext

import aiohttp

from pplex.measure.machine import machine
from pplex.runtime.audio import read_audio
from pplex.runtime.synthetic_speech import speech_like
from pplex.server.client_line import Line, ServerError, server_url
from pplex.server.event_loop import loop_factory
from pplex.server.frame_counter import one_sample
from pplex.server.load_options import choose_formats
from pplex.server.load_protocols import make_wire
from pplex.server.load_report import WARM_UP_S, LoadReport, SessionLog, server_side, summarize
from pplex.server.load_session import Talk, join, refusal
from pplex.server.load_wire import Asked, LoadWire
from pplex.server.speakers import Speaker, make_speaker
from pplex.server.wire import FRAME_S, FRAME_SIZE

SPEECH_FRAMES = 375  # half a minute, if no wav is given
METRICS_S = 5.0
WATCH_S = 0.5

Progress = Callable[[str], object]
Speakers = Mapping[str, Sequence[Speaker]]  # by format


@dataclass(frozen=True)
class Load:
    """The load for a server: `sessions` conversations that all speak until `minutes` after the last one joined.

    formats: the protocols, which sessions take in turn, and the audio format of each (`load_options.choose_formats`).
    """

    url: str
    sessions: int = 16
    minutes: float = 2.0
    formats: Mapping[str, str] = field(default_factory=lambda: choose_formats(("chat",), ()))
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
    speakers = {audio: [make_speaker(audio, pcm) for pcm in recordings] for audio in load.formats.values()}
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_load(load, speakers, progress))


async def _load(load: Load, speakers: Speakers, progress: Progress) -> LoadReport:
    return await _Run(load, speakers, progress).run()


class _Run:
    """The sessions of one load and their logs."""

    def __init__(self, load: Load, speakers: Speakers, progress: Progress):
        self._load, self._speakers, self._progress = load, speakers, progress
        self._random = random.Random(load.seed)
        self._wires = [self._wire(index) for index in range(load.sessions)]
        self._logs = [SessionLog(wire.name, wire.answers_all, wire.has_pauses) for wire in self._wires]
        self._waiting: set[asyncio.Task[None]] = set()  # sessions without a handshake
        self._over = self._interrupted = False

    def _wire(self, index: int) -> LoadWire:
        """The protocol of a session. Sessions of one protocol take the personas in turn."""
        load = self._load
        turn, place = divmod(index, len(load.formats))
        protocol, audio = list(load.formats.items())[place]
        persona = load.personas[turn % len(load.personas)] if load.personas else None
        seed = None if load.seed is None else load.seed + index
        return make_wire(protocol, Asked(audio, load.voice, persona, seed, load.token))

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
            f"{load.sessions} sessions, {load.minutes:g} min of {self._spoken()}, {load.url}",
            self._logs,
            server_side(before, after, seconds, warm) if before and after else None,
            self._interrupted,
            machine(None, "pplex-export", "aiohttp", "av", "numpy"),
        )

    def _spoken(self) -> str:
        """The protocols and their formats."""
        return ", ".join(f"{name} {audio}" for name, audio in self._load.formats.items())

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
        wire = self._wires[index]
        audio = self._load.formats[wire.name]
        speakers = self._speakers[audio]
        messages = speakers[index // len(self._load.formats) % len(speakers)].messages(start, serial)
        try:
            line = await self._join(wire, log, join_s)
        except ServerError as error:
            log.refused = refusal(error)
            log.failed = None if log.refused else str(error)
        else:
            crumb = one_sample(audio) if wire.has_pauses else b""
            await Talk(line, wire, log, lambda: self._over).hold(messages, phase_s, crumb)

    async def _join(self, wire: LoadWire, log: SessionLog, join_s: float) -> Line:
        """Connect and wait for the handshake, until the load is over."""
        load, task = self._load, asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            await asyncio.sleep(join_s)
            log.asked_s = time.perf_counter()
            token = load.token if wire.token_in_header else None
            line = await Line.connect(load.url, wire.path, wire.query(), token, load.ssl)
            line.silence_s = wire.silence_s
            try:
                await join(line, wire)
            except BaseException:
                await line.abandon()
                raise
            log.ready_s = time.perf_counter()
            return line
        except asyncio.CancelledError:
            if log.asked_s is not None and not self._interrupted:
                log.failed = "no handshake before the load was over"
            raise
        finally:
            self._waiting.remove(task)

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
