"""Event loop: the HTTP server. Adds the routes of the protocols, answers for its state, and starts and stops the threads."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from pplex.runtime.bundle import Bundle
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import SteeringError
from pplex.runtime.libraries import load_library
from pplex.runtime.session import Runtime
from pplex.server import metrics
from pplex.server.access import Access
from pplex.server.answers import Answers
from pplex.server.calls import Calls
from pplex.server.chat_routes import ChatRoutes
from pplex.server.control import ControlContext
from pplex.server.conversation import ServerContext, random_key
from pplex.server.event_loop import loop_factory
from pplex.server.gate import Gate
from pplex.server.live_routes import LiveRoutes
from pplex.server.logs import LOGGER
from pplex.server.metrics import Metrics
from pplex.server.openai_http import OpenAiRoutes
from pplex.server.options import ServeOptions
from pplex.server.pages import Pages
from pplex.server.realtime_routes import RealtimeRoutes
from pplex.server.reception import Reception
from pplex.server.refusals import Handler, Refusals
from pplex.server.routes import RouteContext, Routes
from pplex.server.scheduler import Scheduler, now_s
from pplex.server.snapshots import Snapshots
from pplex.server.sockets import listen
from pplex.server.tracing import Tracing
from pplex.server.transcriber import open_transcriber
from pplex.server.twilio_routes import TwilioRoutes
from pplex.server.wire import Close, CloseReason
from pplex.server.worker import Worker

ROUTES: dict[str, type[Routes]] = {  # by name in `--protocols`
    "chat": ChatRoutes,
    "live": LiveRoutes,
    "realtime": RealtimeRoutes,
    "twilio": TwilioRoutes,
}
LAG_S = 0.02  # between looks at the event loop
SWITCH_S = 0.001  # until a busy Python thread lets another run. Python's default of 5 ms is as long as a batch waits
SHUTDOWN_S = 3.0  # for handlers to end: conversations hang up in this time, slow downloads of files are cut off


class Server:
    """One bundle, served from one event loop: `run` until a signal, or `start`, `wait_until_ready`, `drain` and `stop`."""

    def __init__(self, bundle: Bundle, options: ServeOptions, make_key: Callable[[], str] = random_key):
        """`make_key` makes the keys with which a client can resume a conversation, or continue a snapshot."""
        self._bundle, self._options, self._limits = bundle, options, options.limits
        self._metrics = Metrics()
        self._tracing = open_tracing() if options.otel else Tracing()
        self._hearing, self._speech = Worker("hearing"), Worker("speech")
        self._scheduler = Scheduler(
            self._load, options.limits.batch_wait_s, self._metrics, self._speech, self._on_ready, self._on_failed
        )
        self._transcriber = None
        if options.transcriber is not None:
            self._transcriber = open_transcriber(options.transcriber, self._metrics)
        self._snapshots = Snapshots(options.limits, self._metrics, make_key)
        self._context = ServerContext(
            self._scheduler,
            self._hearing,
            self._speech,
            self._limits,
            self._metrics,
            bundle.config.frame_size,
            options.recordings,
            self._tracing,
            ControlContext(self._scheduler, self._snapshots, bundle.voices, self._limits, self._metrics),
            self._transcriber,
        )
        self._changed = asyncio.Event()  # a conversation ended, a signal came, or the scheduler failed
        self._reception = Reception(self._context, options, make_key, self._changed.set)
        self._failure: BaseException | None = None
        self._signals = 0
        self._listener: asyncio.Server | None = None
        self._lag: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._access = Access(
            options.tokens, options.origins, options.trusted_proxies, options.control_tokens, options.allow_control
        )
        self._refusals = Refusals(self._metrics, now_s())
        self._pages = Pages(options.static, self._access, self._on_refused, options.limits.header_s)
        most = 2 * (options.slots + options.limits.queue) + options.limits.spare_connections
        self._gate = Gate(self._http_handler, most, self._limits, self._metrics)
        calls = Calls(self._context, self._reception, self._refusals, self._gate.credit)
        context = RouteContext(bundle, options, self._access, self._reception, calls)
        self._runner = web.AppRunner(self._application(context), shutdown_timeout=SHUTDOWN_S)

    async def run(self, listening: Callable[[str], None]) -> None:
        """Serve until a signal, then drain. `listening` gets the address. Raises ConfigError or the scheduler's error."""
        try:
            url = await self.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._on_signal)
            listening(url)
            await self._wait(lambda: bool(self._signals or self._failure))
            await self.drain()
        finally:
            await self.stop()
        self.check()

    async def start(self) -> str:
        """Listen, and load the bundle; returns the URL. Raises ConfigError if the server cannot listen."""
        await self._runner.setup()
        self._listener, url = await listen(self._gate, self._options, self._limits.header_s)
        self._lag = asyncio.create_task(self._watch_lag())
        for thread in (self._hearing, self._speech, self._scheduler):
            thread.start()
        if self._transcriber is not None:
            self._transcriber.start()
        return url

    async def wait_until_ready(self) -> None:
        """Wait until the bundle is loaded. Raises the scheduler's error."""
        await self._wait(lambda: self._reception.is_ready or self._failure is not None)
        self.check()

    def check(self) -> None:
        """Raise the error with which the scheduler failed, if it did."""
        if self._failure is not None:
            raise self._failure

    def make_protocol(self) -> asyncio.Protocol:
        """The protocol of one more connection, which somebody else accepted on this event loop."""
        return self._gate()

    def metrics_page(self) -> str:
        """The metrics in Prometheus' format."""
        return self._metrics.text().decode()

    @property
    def is_loading(self) -> bool:
        return self._scheduler.is_running and self._scheduler.runtime is None

    # Beginning and end.

    def _load(self) -> Runtime:
        options = self._options
        if self._transcriber is not None:
            self._transcriber.wait_until_loaded()  # first: a wrong name is found at once, a bundle may take minutes
        batches = [options.slots] if options.one_batch_size else None
        runtime = Runtime(
            self._bundle,
            options.slots,
            threads=options.threads,
            batches=batches,
            device=options.device,
            memory_window=options.memory_window,
            spare=options.lets_control,
        )
        if options.lets_control:
            with suppress(SteeringError):  # a tokenizer that cannot write it
                runtime.check_prompt(greeting="1")  # loads the library that spells numbers, which takes seconds
        return runtime

    def _on_ready(self) -> None:
        """Scheduler thread. The loaded bundle stays, so the garbage collector need not scan it again."""
        gc.collect()
        gc.freeze()
        self._reception.is_ready = True
        self._report_change()
        LOGGER.info("ready", extra={"slots": self._options.slots, "voices": len(self._bundle.voices)})

    def _on_failed(self, error: BaseException) -> None:
        self._reception.is_ready, self._failure = False, error
        self._report_change()

    def _report_change(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server ended while the bundle was loaded
            self._loop.call_soon_threadsafe(self._changed.set)

    def _on_signal(self) -> None:
        self._signals += 1
        self._changed.set()

    async def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            self._changed.clear()
            await self._changed.wait()

    async def drain(self, seconds: float | None = None) -> None:
        """Refuse newcomers, and let conversations finish for `seconds`, by default the limit's.

        A second signal or a failure of the scheduler ends them earlier.
        """
        self._reception.is_draining = True
        conversations = self._reception.conversations
        going = CloseReason(Close.GOING_AWAY, "The server is shutting down.", "shutdown")
        if self._failure is not None:
            going = CloseReason(Close.INTERNAL, "The model stopped with an error.", "engine")
        self._reception.dismiss_waiting(going)
        seconds = self._limits.drain_s if seconds is None else seconds
        LOGGER.info("draining", extra={"conversations": len(conversations), "seconds": seconds})
        try:
            async with asyncio.timeout(seconds):
                await self._wait(lambda: not conversations or self._signals > 1 or self._failure is not None)
        except TimeoutError:
            pass
        self._reception.dismiss_all(going)

    async def stop(self) -> None:
        """End all connections and threads."""
        if self._listener is not None:
            self._listener.close()
        if self._lag is not None:
            self._lag.cancel()
        await self._runner.shutdown()
        await self._runner.cleanup()  # waits for the handlers, which hang up
        self._snapshots.clear()
        for thread in (self._hearing, self._scheduler, self._speech):
            if thread.is_running:
                await asyncio.to_thread(thread.stop)
        if self._transcriber is not None and self._transcriber.is_running:
            await asyncio.to_thread(self._transcriber.stop)
        await asyncio.to_thread(self._tracing.close)
        LOGGER.info("stopped")

    def _http_handler(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return Handler(self._runner.server, self._loop, self._on_refused)

    def _on_refused(self, status: int, reason: str) -> None:
        self._refusals.note(status, reason, now_s())

    async def _watch_lag(self) -> None:
        while True:
            began = now_s()
            await asyncio.sleep(LAG_S)
            self._metrics.loop_lag.observe(max(0.0, now_s() - began - LAG_S))

    # Requests.

    def _application(self, context: RouteContext) -> web.Application:
        """Everything behind an address: the protocols' routes, the server's own, and the pages."""
        app = web.Application()
        protocols = [ROUTES[name](context) for name in self._options.protocols]
        speaks_openai = any(routes.is_openai for routes in protocols)
        for routes in protocols:
            routes.add_to(app.router)
        if speaks_openai:
            OpenAiRoutes(self._bundle, self._access).add_to(app.router)
        app.router.add_get("/api/info", self._info)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._show_metrics)
        self._pages.add_to(app.router)
        Answers(self._gate, self._pages, self._refusals, speaks_openai).add_to(app)
        return app

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=503 if self._failure else 200, text="failed\n" if self._failure else "ok\n")

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        state = self._reception.state()
        return web.json_response(state, status=200 if state["ready"] else 503)

    async def _show_metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _info(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "voices": list(self._bundle.voices),
                "takes_prompt": self._bundle.config.takes_prompt,
                "sample_rate": SAMPLE_RATE_HZ,
                "frame_size": self._bundle.config.frame_size,
                "token_required": not self._access.has_token(request),
                "control": self._access.may_control(request),
            }
        )


def open_tracing() -> Tracing:
    """Traces for OpenTelemetry. Raises LibraryError if its SDK is missing, and ConfigError for a wrong variable."""
    missing = "--otel needs OpenTelemetry's SDK. Install it: pip install 'pplex-export[otel]'"
    load_library("opentelemetry.exporter.otlp.proto.http.trace_exporter", missing)
    load_library("opentelemetry.sdk.trace.export", missing)
    from pplex.server.otel import OtelTracing

    return OtelTracing()


def serve(bundle: Bundle, options: ServeOptions, listening: Callable[[str], None]) -> bool:
    """Serve until a signal. Raises PplexError if the address is in use or an engine cannot be loaded.

    Returns whether a library is still loading the bundle, in a thread that cannot be stopped.
    """
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_run(bundle, options, listening))


async def _run(bundle: Bundle, options: ServeOptions, listening: Callable[[str], None]) -> bool:
    server = Server(bundle, options)
    await server.run(listening)
    return server.is_loading
