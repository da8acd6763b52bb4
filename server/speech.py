"""Speech thread: encodes what the agent says for a conversation's connection, and records both sides. It also passes on what
the user says to be transcribed.

The scheduler puts replies in; the event loop sends the messages.
"""

import asyncio

from pplex.server.connection import Connection
from pplex.server.inbox import Inbox
from pplex.server.listening import Listener
from pplex.server.logs import log_as
from pplex.server.recording import Recording
from pplex.server.scheduler import FrameReply


class OutgoingAudio:
    """One conversation's replies, from frames to the messages of its connection."""

    def __init__(self, conversation: str, inbox: Inbox):
        """`conversation` is the conversation's id, for the log."""
        self.connection: Connection | None = None  # set by the event loop; None while the client is away
        self.recording: Recording | None = None
        self.listener: Listener | None = None
        self.is_over = False
        self._id, self._inbox, self._loop = conversation, inbox, asyncio.get_running_loop()

    def answer(self, reply: FrameReply) -> None:
        """Record and encode a reply. The reply to a frame of an earlier connection is not sent."""
        log_as(self._id)  # the scheduler gives this work, and it works for all conversations
        connection = self.connection
        if self.is_over:
            return
        if self.recording is not None:
            self.recording.write(reply.frame.pcm, reply.reply.pcm)
        if connection is None or reply.frame.epoch != self._inbox.epoch:
            return
        if self.listener is not None:
            self.listener.hear(reply.frame.pcm, connection.wire.takes_words)
        encoded = connection.wire.encode(reply.reply.pcm, reply.reply.text)
        self._loop.call_soon_threadsafe(connection.deliver, encoded, reply)

    def close(self) -> None:
        """Finish the recording, if the conversation has one."""
        log_as(self._id)  # a shutdown gives this work too
        if self.recording is not None:
            self.recording.close()
