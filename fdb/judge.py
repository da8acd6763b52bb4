"""A judge of answers to interruptions: any server that speaks OpenAI's chat completions. Called by `cli.fdb`.

The benchmark's own judge was a GPT-4 model with its own prompt; this prompt is ours, on the same scale of 0 to 5.
"""

import json
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from pplex.runtime.errors import ConfigError, SampleError

ATTEMPTS, FIRST_PAUSE_S, TIMEOUT_S = 3, 1.0, 60.0
GIVES_UP_AFTER = 3  # samples in a row without a grade
MOST_BYTES = 1 << 20
_AGAIN = {408, 409, 425, 429}  # and 5xx: another attempt may succeed
_PATH = "/chat/completions"
_TASK = (
    "You grade a voice assistant. A user said something, and then interrupted the assistant with something else. "
    "You get both, and what the assistant said after the interruption, as a speech recogniser wrote it down. "
    "Grade how well the assistant answered the interruption:\n"
    "5 = it answers the interruption fully, and fits the conversation\n"
    "4 = it answers, with a small flaw\n"
    "3 = it answers in part\n"
    "2 = it is loosely related, but no answer\n"
    "1 = it ignores the interruption, such as by continuing with the first subject\n"
    "0 = it is empty or makes no sense\n"
    'Reply with JSON only: {"grade": NUMBER}'
)


class Judge:
    """Asks `model` at `url`, such as http://127.0.0.1:8000/v1, for a grade from 0 to 5. Raises ConfigError for a wrong URL.

    After a refusal, or GIVES_UP_AFTER samples without a grade, it asks no more.
    """

    def __init__(self, url: str, model: str, key: str | None = None, pause_s: float = FIRST_PAUSE_S):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError(f"{url} is not the address of a judge. Give its base URL: http://127.0.0.1:8000/v1")
        base = url.rstrip("/")
        self._url = base if base.endswith(_PATH) else base + _PATH
        self._model, self._key, self._pause_s = model, key, pause_s
        self._failed, self._given_up = 0, ""

    def __call__(self, context: str, interruption: str, answer: str) -> float:
        """The grade of an answer. Raises SampleError."""
        if self._given_up:
            raise SampleError(f"not graded, because the judge failed before: {self._given_up}")
        asked = {"user": context, "interruption": interruption, "assistant": answer}
        try:
            grade = self._try(json.dumps(asked, indent=1))
        except SampleError as error:
            self._failed += 1
            if self._failed >= GIVES_UP_AFTER:
                self._given_up = str(error)
            raise
        self._failed = 0
        return grade

    def _try(self, text: str) -> float:
        """Ask up to ATTEMPTS times."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                return _grade(self._ask(text))
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"the judge answered {error.code}: {_short(error.read(300))}"
                if error.code < 500 and error.code not in _AGAIN:
                    self._given_up = reason
                    break
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
                reason = f"the judge gave no grade: {type(error).__name__}: {_short(str(error))}"
        raise SampleError(reason)

    def _ask(self, text: str) -> str:
        messages = [{"role": "system", "content": _TASK}, {"role": "user", "content": text}]
        body = json.dumps({"model": self._model, "messages": messages, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        with urllib.request.urlopen(urllib.request.Request(self._url, body, headers), timeout=TIMEOUT_S) as reply:
            data: Any = json.loads(reply.read(MOST_BYTES))
        return str(data["choices"][0]["message"]["content"])


def _grade(reply: str) -> float:
    """The grade in a reply; some models write around the JSON, or the number alone. Raises ValueError."""
    found = re.search(r'"grade"\s*:\s*"?(\d+(?:\.\d+)?)', reply) or re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*", reply)
    if not found or not 0 <= float(found[1]) <= 5:
        raise ValueError(f"the reply has no grade from 0 to 5: {_short(reply)}")
    return float(found[1])


def _short(text: str | bytes) -> str:
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text
    return " ".join(plain.split())[:200]
