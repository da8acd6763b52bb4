"""Event loop: the HTTP server. Checks requests, starts conversations, and starts and stops the threads."""

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler as Serves
from aiohttp.typedefs import Middleware

from pplex.runtime.bundle import Bundle
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import PplexError, SteeringError
from pplex.runtime.libraries import load_library
from pplex.runtime.session import Runtime
from pplex.server import metrics
from pplex.server.access import Access, subprotocols
from pplex.server.admission import Admission
from pplex.server.chat_messages import PATH
from pplex.server.chat_protocol import ChatProtocol
from pplex.server.chat_request import ChatRequest, parse_query
from pplex.server.connection import Connection
from pplex.server.control import ControlContext
from pplex.server.conversation import ServerContext, ServerConversation, random_key
from pplex.server.event_loop import loop_factory
from pplex.server.gate import Gate
from pplex.server.limits import MAX_ORDER_MESSAGE
from pplex.server.live_protocol import LiveProtocol
from pplex.server.live_requests import live_terms, model_list, openai_error, refuse_path
from pplex.server.logs import LOGGER, log_as
from pplex.server.metrics import Metrics
from pplex.server.options import ServeOptions
from pplex.server.pages import Pages
from pplex.server.refusals import HEADERS, Handler, Refusals
from pplex.server.request import ConversationRequest, RequestError
from pplex.server.room import opening, too_late
from pplex.server.scheduler import Scheduler, now_s
from pplex.server.snapshots import KeptSnapshot, Snapshots
from pplex.server.sockets import listen
from pplex.server.tracing import Tracing
from pplex.server.wire import Close, CloseReason, WireProtocol
from pplex.server.worker import Worker

OPENAI_PREFIXES = ("/v1", "/openai/v1")  # of addresses: OpenAI's, and Azure's
LAG_S = 0.02  # between looks at the event loop
SEND_BUFFER = 32768  # bytes the kernel keeps for a client: seconds of audio, not minutes
SWITCH_S = 0.001  # until a busy Python thread lets another run. Python's default of 5 ms is as long as a batch waits
RETRY_AFTER_S = 5
SHUTDOWN_S = 3.0  # for handlers to end: conversations hang up in this time, slow downloads of files are cut off


class Server:
    """One bundle, served from one event loop: `run` until a signal, or `start`, `wait_until_ready`, `drain` and `stop`."""

    def __init__(self, bundle: Bundle, options: ServeOptions, make_key: Callable[[], str] = random_key):
        """`make_key` makes the keys with which a client can resume a conversation, or continue a snapshot."""
        self._bundle, self._options, self._limits, self._make_key = bundle, options, options.limits, make_key
        self._metrics = Metrics()
        self._tracing = open_tracing() if options.otel else Tracing()
        self._admission = Admission(options.slots, options.limits.queue, self._metrics)
        self._hearing, self._speech = Worker("hearing"), Worker("speech")
        self._scheduler = Scheduler(
            self._load, options.limits.batch_wait_s, self._metrics, self._speech, self._on_ready, self._on_failed
        )
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
        )
        self._conversations: set[ServerConversation] = set()
        self._unstarted: set[Connection] = set()  # open sockets without a conversation, which takes a start message
        self._by_key: dict[str, ServerConversation] = {}
        self._is_ready = self._is_draining = False
        self._failure: BaseException | None = None
        self._signals = 0
        self._listener: asyncio.Server | None = None
        self._lag: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # a conversation ended, a signal came, or the scheduler failed
        self._loop = asyncio.get_running_loop()
        self._access = Access(
            options.tokens, options.origins, options.trusted_proxies, options.control_tokens, options.allow_control
        )
        self._refusals = Refusals(self._metrics, now_s())
        self._pages = Pages(options.static, self._access, self._on_refused, options.limits.header_s)
        most = 2 * (options.slots + options.limits.queue) + options.limits.spare_connections
        self._runner = web.AppRunner(self._application(), shutdown_timeout=SHUTDOWN_S)
        self._gate = Gate(self._http_handler, most, self._limits, self._metrics)

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
        return url

    async def wait_until_ready(self) -> None:
        """Wait until the bundle is loaded. Raises the scheduler's error."""
        await self._wait(lambda: self._is_ready or self._failure is not None)
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
        self._is_ready = True
        self._report_change()
        LOGGER.info("ready", extra={"slots": self._options.slots, "voices": len(self._bundle.voices)})

    def _on_failed(self, error: BaseException) -> None:
        self._is_ready, self._failure = False, error
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
        self._is_draining = True
        going = CloseReason(Close.GOING_AWAY, "The server is shutting down.", "shutdown")
        if self._failure is not None:
            going = CloseReason(Close.INTERNAL, "The model stopped with an error.", "engine")
        for connection in list(self._unstarted):
            connection.end(going)
        for conversation in list(self._conversations):
            if not conversation.is_begun:
                conversation.dismiss(going)
        seconds = self._limits.drain_s if seconds is None else seconds
        LOGGER.info("draining", extra={"conversations": len(self._conversations), "seconds": seconds})
        try:
            async with asyncio.timeout(seconds):
                await self._wait(lambda: not self._conversations or self._signals > 1 or self._failure is not None)
        except TimeoutError:
            pass
        for conversation in list(self._conversations):
            conversation.dismiss(going)

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

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware()])
        if "chat" in self._options.protocols:
            app.router.add_get(PATH, self._chat)
            app.router.add_post(PATH, self._would_chat)
        if "live" in self._options.protocols:
            for prefix in OPENAI_PREFIXES:
                app.router.add_get(f"{prefix}/live/sessions", self._live)
                app.router.add_get(f"{prefix}/models", self._models)
                app.router.add_route("*", f"{prefix}/{{path:.*}}", refuse_path)
        app.router.add_get("/api/info", self._info)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._show_metrics)
        self._pages.add_to(app.router)
        app.on_response_prepare.append(self._note_missing)
        return app

    def _middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Serves) -> web.StreamResponse:
            self._gate.passed(request.transport)
            try:
                response = await handler(request)
            except RequestError as error:
                response = self._refuse(request, error)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # a static file's
                    raise
                response = web.Response(status=404, text="This file does not exist.\n")
            if not response.prepared:
                if "Upgrade" in request.headers:
                    response.force_close()  # a balancer may have chosen this server for the conversation alone
                response.headers.update({**HEADERS, **self._pages.headers(response), **response.headers})
            return response

        return middleware

    async def _note_missing(self, request: web.Request, response: web.StreamResponse) -> None:
        """Refuse a missing file: only sending it shows that it is missing."""
        if response.status in (403, 404) and isinstance(response, web.FileResponse | web.HTTPException):
            reason = "This file does not exist, or cannot be read."
            self._refusals.note(response.status, reason, now_s(), path=request.path[:200])

    def _refuse(self, request: web.Request, error: RequestError) -> web.Response:
        facts = {name.lower(): request.headers[name][:200] for name in ("Origin", "Host") if name in request.headers}
        self._refusals.note(error.status, str(error), now_s(), **facts)
        response = web.Response(status=error.status, text=" ".join(f"{error}".split("\n")) + "\n")
        if "live" in self._options.protocols and request.path.startswith(tuple(f"{each}/" for each in OPENAI_PREFIXES)):
            response = openai_error(error)
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=503 if self._failure else 200, text="failed\n" if self._failure else "ok\n")

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        admission = self._admission
        free = self._is_ready and not self._is_draining and admission.used < admission.slots and not admission.queued
        state = {"ready": free, "slots": admission.slots, "used": admission.used, "queued": admission.queued}
        return web.json_response(state, status=200 if free else 503)

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

    def _checked(self, request: web.Request) -> tuple[ChatRequest, ServerConversation | None]:
        """The request, and the conversation that it resumes, if any. Raises RequestError if it is refused."""
        self._access.check_origin(request)
        self._access.check_token(request)
        chat = parse_query(request.query.items(), self._bundle.voices, self._bundle.config.takes_prompt)
        if chat.control or chat.greeting is not None or chat.snapshot:
            self._access.check_control(request)
        resumed = self._resumable(chat.resume) if chat.resume else None
        if resumed is None:
            self._check_ready()
            if chat.snapshot:
                self._kept(chat.snapshot)
            else:
                self._check_prompt(chat)
            self._admission.check_room()
        return chat, resumed

    async def _would_chat(self, request: web.Request) -> web.StreamResponse:
        """Answer whether a conversation would begin, because a browser hides from a page why a WebSocket was refused."""
        self._checked(request)
        return web.Response(status=204)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        """A conversation over the reference's protocol. Everything is checked before the upgrade."""
        chat, resumed = self._checked(request)
        return await self._converse(request, chat, resumed, ChatProtocol(chat))

    async def _converse(
        self,
        request: web.Request,
        asked: ConversationRequest,
        resumed: ServerConversation | None,
        wire: WireProtocol,
    ) -> web.StreamResponse:
        """Hold a new or a resumed conversation over a WebSocket, in any wire protocol."""
        ws = self._socket(request, wire)
        self._tracing.accept(request.headers)
        conversation = resumed or self._enter(asked, wire)
        log_as(conversation.id)
        why = None
        try:
            try:
                await ws.prepare(request)
            except ConnectionError:
                return web.Response(status=499)  # the client has left
            self._hearing.put(wire.prepare)
            connection = Connection(ws, _transport(request), wire, self._limits, self._metrics)
            why = await conversation.run(connection)
        finally:
            if why is None and resumed is None:
                conversation.end("lost")  # the connection was lost before the conversation began
        self._metrics.partings.labels(why.cause).inc()
        await connection.hang_up(why)
        return ws

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """A conversation over GPT-Live, whose client sends the settings over the open socket."""
        self._access.check_origin(request)
        self._access.check_token(request)
        terms = live_terms(request, self._bundle, self._access.may_control(request), self._limits.duration_s)
        self._check_ready()
        self._admission.check_room()
        if len(self._unstarted) >= self._limits.spare_connections // 2:
            raise RequestError(503, "Too many connections wait for their start message.", RETRY_AFTER_S)
        wire = LiveProtocol(terms)
        ws = self._socket(request, wire)
        self._tracing.accept(request.headers)
        try:
            await ws.prepare(request)
        except ConnectionError:
            return web.Response(status=499)  # the client has left
        transport = _transport(request)
        on_wait = partial(self._gate.credit, transport)
        connection = Connection(ws, transport, wire, self._limits, self._metrics, on_wait)
        why = await self._start_and_converse(connection)
        connection.end(why)  # a refused start has not done so
        await connection.hang_up(why)
        return ws

    async def _start_and_converse(self, connection: Connection) -> CloseReason:
        """Wait for the start message, which takes a slot, and hold the conversation; returns why the connection ends."""
        self._unstarted.add(connection)
        try:
            asked = await opening(connection, self._limits.start_s)
        finally:
            self._unstarted.discard(connection)
        if asked is None:
            why = connection.ended.result()
            if why.cause == "protocol":
                self._refusals.note(400, why.reason, now_s(), protocol=connection.wire.name)
            return why
        try:
            self._check_ready()
            self._check_prompt(asked)
            conversation = self._enter(asked, connection.wire)
        except RequestError as error:
            self._refusals.note(error.status, str(error), now_s(), protocol=connection.wire.name)
            return too_late(error)
        log_as(conversation.id)
        self._hearing.put(connection.wire.prepare)
        why = await conversation.run(connection)
        self._metrics.partings.labels(why.cause).inc()
        return why

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._access.check_token(request)
        return web.json_response(model_list(self._bundle))

    def _socket(self, request: web.Request, wire: WireProtocol) -> web.WebSocketResponse:
        """The WebSocket of a request, before its upgrade. Raises RequestError if the request asks for none."""
        spoken = ("realtime",) if wire.name != "chat" and "realtime" in subprotocols(request) else ()
        ws = web.WebSocketResponse(
            timeout=2.0,
            protocols=spoken,
            compress=False,
            autoping=False,  # the connection answers pings itself: aiohttp would not limit or count them
            max_msg_size=max(wire.max_message, MAX_ORDER_MESSAGE if wire.controls else 0),
            heartbeat=self._limits.heartbeat_s,
            writer_limit=SEND_BUFFER // 4,
        )
        if not ws.can_prepare(request):
            raise RequestError(426, "This is a WebSocket: connect to it with ws:// or wss://.")
        return ws

    def _resumable(self, key: str) -> ServerConversation:
        conversation = self._by_key.get(key)
        if conversation is None:
            raise RequestError(404, "The conversation with this key is over. Start a new one.")
        return conversation

    def _kept(self, key: str) -> KeptSnapshot:
        kept = self._snapshots.get(key)
        if kept is None:
            raise RequestError(
                404, "The snapshot with this key was dropped, or never existed. Start a new conversation."
            )
        return kept

    def _check_ready(self) -> None:
        if not self._is_ready or self._scheduler.runtime is None or self._is_draining:
            state = "shutting down" if self._is_draining else "still loading"
            raise RequestError(503, f"The server is {state}. Try again later.", RETRY_AFTER_S)

    def _check_prompt(self, asked: ConversationRequest) -> None:
        assert self._scheduler.runtime is not None
        try:
            self._scheduler.runtime.check_prompt(asked.voice, asked.persona, asked.greeting)
        except PplexError as error:
            raise RequestError(400, str(error)) from error

    def _enter(self, asked: ConversationRequest, wire: WireProtocol) -> ServerConversation:
        kept = self._kept(asked.snapshot) if asked.snapshot else None  # not longer than this call: it is large
        request = replace(kept.request, ignored=asked.ignored) if kept else asked
        conversation = ServerConversation(
            self._context,
            request,
            self._admission.enter(),
            self._make_key(),
            self._forget,
            wire,
            kept.snapshot if kept else None,
        )
        self._conversations.add(conversation)
        self._by_key[conversation.key] = conversation
        facts: dict[str, object] = {
            "conversation": conversation.id,
            "protocol": wire.name,
            "voice": request.voice,
            "audio": wire.audio,
        }
        if wire.controls:
            facts["control"] = True
        if asked.ignored:
            self._metrics.ignored.labels("parameter").inc(len(asked.ignored))
            facts["ignored"] = asked.ignored
        if conversation.trace.identity:
            facts["trace"] = conversation.trace.identity
        if self._options.log_prompts:
            facts["text_prompt"] = request.persona
        LOGGER.info("conversation admitted", extra=facts)
        return conversation

    def _forget(self, conversation: ServerConversation) -> None:
        self._conversations.discard(conversation)
        self._by_key.pop(conversation.key, None)
        self._changed.set()


def _transport(request: web.Request) -> asyncio.Transport:
    """The request's transport, with a small buffer for data that the client does not read."""
    transport = cast(asyncio.Transport, request.transport)
    transport.set_write_buffer_limits(high=SEND_BUFFER // 4)
    listener: socket.socket = transport.get_extra_info("socket")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return transport


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
