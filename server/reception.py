"""Event loop: checks requests for conversations, admits them to a slot, and keeps the conversations that are not over.

Called by `server.app`, `server.calls` and the routes of each protocol.
"""

from collections.abc import Callable
from dataclasses import replace

from pplex.runtime.errors import PplexError
from pplex.server.admission import Admission
from pplex.server.connection import Connection
from pplex.server.conversation import ServerContext, ServerConversation
from pplex.server.limits import Bucket
from pplex.server.logs import LOGGER
from pplex.server.options import ServeOptions
from pplex.server.request import ConversationRequest, RequestError
from pplex.server.scheduler import now_s
from pplex.server.snapshots import KeptSnapshot
from pplex.server.wire import CloseReason, WireProtocol

RETRY_AFTER_S = 5


class Reception:
    """All conversations of a server, and the open sockets without one. `on_over` is called when a conversation is over."""

    def __init__(
        self, context: ServerContext, options: ServeOptions, make_key: Callable[[], str], on_over: Callable[[], None]
    ):
        self._context, self._options, self._make_key, self._on_over = context, options, make_key, on_over
        self._metrics, self._snapshots = context.metrics, context.control.snapshots
        limits = options.limits
        self._texts = Bucket(limits.prompt_characters, limits.prompt_characters_per_s, now_s())
        self._admission = Admission(options.slots, options.limits.queue, context.metrics)
        self.conversations: set[ServerConversation] = set()
        self._by_key: dict[str, ServerConversation] = {}
        self.unstarted: set[Connection] = set()  # open sockets without a conversation, which takes a start message
        self.is_ready = self.is_draining = False  # set by the server

    def state(self) -> dict[str, bool | int]:
        """Whether the next client gets a slot at once, and the numbers of slots, used slots and queued clients."""
        books = self._admission
        free = self.is_ready and not self.is_draining and books.used < books.slots and not books.queued
        return {"ready": free, "slots": books.slots, "used": books.used, "queued": books.queued}

    # Checks. Each raises RequestError.

    def check_open(self) -> None:
        """Check that the server takes conversations now, and has a slot or a place in the queue."""
        self._check_ready()
        self._admission.check_room()

    def check(self, asked: ConversationRequest) -> None:
        """Check that `enter` would admit this conversation, and that the model can say its persona and greeting."""
        self._check_ready()
        if asked.snapshot:
            self._kept(asked.snapshot)
        else:
            self.check_prompt(asked)
        self._admission.check_room()

    def check_prompt(self, asked: ConversationRequest) -> None:
        """Check that the model can take the voice, the persona and the greeting."""
        runtime = self._context.scheduler.runtime
        assert runtime is not None
        if not self._texts.take(len(asked.persona) + len(asked.greeting or ""), now_s()):
            raise RequestError(503, "Too many long personas are sent at once. Try again later.", RETRY_AFTER_S)
        try:
            runtime.check_prompt(asked.voice, asked.persona, asked.greeting)
        except PplexError as error:
            raise RequestError(400, str(error)) from error

    def check_spare_socket(self) -> None:
        """Check that one more socket may wait for its start message."""
        if len(self.unstarted) >= self._options.limits.spare_connections // 2:
            raise RequestError(503, "Too many connections wait for their start message.", RETRY_AFTER_S)

    def resumable(self, key: str) -> ServerConversation:
        """The conversation with this key. Raises RequestError if it is over."""
        conversation = self._by_key.get(key)
        if conversation is None:
            raise RequestError(404, "The conversation with this key is over. Start a new one.")
        return conversation

    def _check_ready(self) -> None:
        if not self.is_ready or self._context.scheduler.runtime is None or self.is_draining:
            state = "shutting down" if self.is_draining else "still loading"
            raise RequestError(503, f"The server is {state}. Try again later.", RETRY_AFTER_S)

    def _kept(self, key: str) -> KeptSnapshot:
        kept = self._snapshots.get(key)
        if kept is None:
            raise RequestError(
                404, "The snapshot with this key was dropped, or never existed. Start a new conversation."
            )
        return kept

    # Beginning and end.

    def enter(self, asked: ConversationRequest, wire: WireProtocol) -> ServerConversation:
        """A new conversation with a slot or a place in the queue. Raises RequestError if both are full."""
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
        self.conversations.add(conversation)
        self._by_key[conversation.key] = conversation
        if request.ignored:
            self._metrics.ignored.labels("parameter").inc(len(request.ignored))
        LOGGER.info("conversation admitted", extra=self._facts(conversation, request, wire))
        return conversation

    def _facts(
        self, conversation: ServerConversation, request: ConversationRequest, wire: WireProtocol
    ) -> dict[str, object]:
        """What the log says of a new conversation."""
        facts: dict[str, object] = {
            "conversation": conversation.id,
            "protocol": wire.name,
            "voice": request.voice,
            "audio": wire.audio,
        }
        if wire.controls:
            facts["control"] = True
        if request.ignored:
            facts["ignored"] = request.ignored
        if conversation.trace.identity:
            facts["trace"] = conversation.trace.identity
        if self._options.log_prompts:
            facts["text_prompt"] = request.persona
        return facts

    def _forget(self, conversation: ServerConversation) -> None:
        self.conversations.discard(conversation)
        self._by_key.pop(conversation.key, None)
        self._on_over()

    def dismiss_waiting(self, why: CloseReason) -> None:
        """End the sockets and the conversations that have not begun."""
        for connection in list(self.unstarted):
            connection.end(why)
        for conversation in list(self.conversations):
            if not conversation.is_begun:
                conversation.dismiss(why)

    def dismiss_all(self, why: CloseReason) -> None:
        """End all conversations."""
        for conversation in list(self.conversations):
            conversation.dismiss(why)
