"""A judge of answers: any server that speaks OpenAI's chat completions. Called by `fdb.tasks`, made by `cli.fdb_score`.

The benchmarks' own judges are GPT-4 models with their own prompts; ours are in `fdb.rubrics`.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pplex.fdb.rubrics import Rubric, short
from pplex.runtime.errors import ConfigError, SampleError

T = TypeVar("T")

ATTEMPTS, FIRST_PAUSE_S, TIMEOUT_S = 3, 1.0, 60.0
GIVES_UP_AFTER = 3  # samples in a row without a grade
MOST_BYTES = 1 << 20
_AGAIN = {408, 409, 425, 429}  # and 5xx: another attempt may succeed
_PATH = "/chat/completions"


class Judge:
    """Asks `model` at `url`, such as http://127.0.0.1:8000/v1, about answers. Raises ConfigError for a wrong URL or key.

    After a refusal, or GIVES_UP_AFTER samples without a grade, it asks no more.
    """

    def __init__(self, url: str, model: str, key: str | None = None, pause_s: float = FIRST_PAUSE_S):
        if not _is_address(url):
            raise ConfigError(f"{url} is not the address of a judge. Give its base URL: http://127.0.0.1:8000/v1")
        base = url.rstrip("/")
        self._url = base if base.endswith(_PATH) else base + _PATH
        self._model, self._key, self._pause_s = model, _checked(key), pause_s
        self._failed, self._given_up = 0, ""

    def __call__(self, rubric: Rubric[T], asked: Mapping[str, Any]) -> T:
        """What the judge says about `asked`. Raises SampleError."""
        if self._given_up:
            raise SampleError(f"not graded, because the judge failed before: {self._given_up}")
        try:
            verdict = self._try(rubric, json.dumps(asked, indent=1))
        except SampleError as error:
            self._failed += 1
            if self._failed >= GIVES_UP_AFTER:
                self._given_up = str(error)
            raise
        self._failed = 0
        return verdict

    def _try(self, rubric: Rubric[T], text: str) -> T:
        """Ask up to ATTEMPTS times."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                return rubric.read(self._ask(rubric.system, text))
            except urllib.error.HTTPError as error:
                reason = f"the judge answered {error.code}: {_reason(error)}"
                if error.code < 500 and error.code not in _AGAIN:
                    self._given_up = reason
                    break
            except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
                reason = f"the judge gave no grade: {type(error).__name__}: {short(str(error))}"
        raise SampleError(reason)

    def _ask(self, system: str, text: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        body = json.dumps({"model": self._model, "messages": messages, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        with _OPENER.open(urllib.request.Request(self._url, body, headers), timeout=TIMEOUT_S) as reply:
            data: Any = json.loads(_read(reply))
        return str(data["choices"][0]["message"]["content"])


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key and the words go to the judge that was named, and to nobody else: a redirect is an error."""

    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an incomplete IPv6 address, or a port that is not a number
        return False


def _checked(key: str | None) -> str | None:
    """The key without the end of line that files have. Raises ConfigError, without the key, if no header can hold it."""
    stripped = key.strip() if key else None
    if stripped and not (stripped.isascii() and stripped.isprintable()):
        raise ConfigError("The judge's key has characters that no key has. Check --judge-key or PPLEX_JUDGE_KEY.")
    return stripped


def _read(reply: HTTPResponse) -> bytes:
    """The body, MOST_BYTES at most. Raises TimeoutError: the limit of `open` is for each part, this one for all."""
    began, body = time.monotonic(), bytearray()
    while part := reply.read1(MOST_BYTES - len(body)):
        body += part
        if time.monotonic() - began > TIMEOUT_S:
            raise TimeoutError(f"its reply took more than {TIMEOUT_S:g} s")
    return bytes(body)


def _reason(error: urllib.error.HTTPError) -> str:
    """Where a redirect leads, or what the server says."""
    with error:
        if place := error.headers.get("Location"):
            return short(f"it refers to {place}. Give that address, if it is right")
        try:
            return short(error.read(300).decode(errors="replace"))
        except (OSError, HTTPException, ValueError):
            return "without a reason"
