"""Logs as JSON: one object in each line on standard error. Called by `cli.serving`.

After `log_as`, every line of a task has the conversation's id, also lines of the tasks and timers that it starts, and of the
work that it gives to a `Worker`.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO

LOGGER = logging.getLogger("pplex.server")
_CONVERSATION = ContextVar("conversation", default="")
_STANDARD = {*logging.LogRecord("", 0, "", 0, "", None, None).__dict__, "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time (UTC), level, event and the fields of `extra`; an exception with its traceback. `facts` are in every line."""

    def __init__(self, facts: Mapping[str, str] = MappingProxyType({})):
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._facts,
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD and name[0] != "_"}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as(conversation: str) -> None:
    """From now on, add the id of a conversation to every line of this task, or of this work of a `Worker`."""
    _CONVERSATION.set(conversation)


def _name_conversation(record: logging.LogRecord) -> bool:
    """Add the id to a line that does not name a conversation itself."""
    if (identity := _CONVERSATION.get()) and not hasattr(record, "conversation"):
        record.conversation = identity
    return True


def _is_ours(record: logging.LogRecord) -> bool:
    """False for errors from invalid HTTP requests: anyone can send these, and each would log a traceback."""
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.web import RequestPayloadError

    strangers = HttpProcessingError | RequestPayloadError | ConnectionError
    return not (record.exc_info and isinstance(record.exc_info[1], strangers))


def start_logging(stream: TextIO | None = None, **facts: str) -> None:
    """Send our events, and warnings of the libraries, to `stream` or standard error, with `facts` in every line."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(facts))
    handler.addFilter(_is_ours)
    handler.addFilter(_name_conversation)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aiohttp.websocket").setLevel(
        logging.ERROR
    )  # its warnings name subprotocols, which may hold a key
    LOGGER.setLevel(logging.INFO)
