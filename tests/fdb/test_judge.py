"""The judge: a server that speaks OpenAI's chat completions, its grades and its faults."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from planted_agents import copied

from pplex.cli import main
from pplex.fdb.judge import ATTEMPTS, GIVES_UP_AFTER, Judge
from pplex.runtime.errors import ConfigError, SampleError

Reply = tuple[int, str]  # status, and the model's words
Ask = tuple[str, str, str]
ASKED: Ask = ("Name some books.", "About cooking instead.", "Sure, here is one.")


class JudgeServer:
    """Gives the replies one after another, the last one for ever, and keeps what it was asked."""

    def __init__(self, *replies: Reply):
        self.requests = list[tuple[str, dict[str, str], Any]]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, words = replies[min(len(server.requests), len(replies) - 1)]
                server.requests.append((self.path, dict(self.headers), body))
                data = (
                    words.encode()
                    if status != 200
                    else json.dumps({"choices": [{"message": {"content": words}}]}).encode()
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def judge_with() -> Iterator[Callable[..., tuple[Judge, JudgeServer]]]:
    servers = list[JudgeServer]()

    def make(*replies: Reply) -> tuple[Judge, JudgeServer]:
        servers.append(JudgeServer(*replies))
        return Judge(servers[-1].url, "a-model", "secret", pause_s=0.01), servers[-1]

    yield make
    for server in servers:
        server.close()


def test_it_is_asked_with_the_model_the_key_and_all_texts(judge_with: Any) -> None:
    judge, server = judge_with((200, '{"grade": 4}'))
    assert judge(*ASKED) == 4
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "a-model" and all(text in body["messages"][1]["content"] for text in ASKED)


@pytest.mark.parametrize(
    "words, grade",
    [('```json\n{"grade": 3.5}\n```', 3.5), ("5", 5), ('{"grade": "2", "why": "10 words"}', 2), ("0", 0)],
)
def test_models_write_grades_in_many_ways(judge_with: Any, words: str, grade: float) -> None:
    assert judge_with((200, words))[0](*ASKED) == grade


@pytest.mark.parametrize("first", [(500, "down"), (429, "slow down"), (200, "no idea"), (200, '{"grade": 9}')])
def test_another_attempt_helps(judge_with: Any, first: Reply) -> None:
    judge, server = judge_with(first, (200, '{"grade": 1}'))
    assert judge(*ASKED) == 1 and len(server.requests) == 2


def test_attempts_are_limited_and_then_samples_too(judge_with: Any) -> None:
    judge, server = judge_with((503, "overloaded"))
    for _ in range(GIVES_UP_AFTER + 5):
        with pytest.raises(SampleError, match="503: overloaded"):
            judge(*ASKED)
    assert len(server.requests) == ATTEMPTS * GIVES_UP_AFTER


def test_a_refusal_is_final(judge_with: Any) -> None:
    judge, server = judge_with((401, "wrong key"))
    for _ in range(3):
        with pytest.raises(SampleError, match="401: wrong key"):
            judge(*ASKED)
    assert len(server.requests) == 1


def test_nobody_there(judge_with: Any) -> None:
    judge, server = judge_with((200, "5"))
    server.close()
    with pytest.raises(SampleError, match="refused"):
        judge(*ASKED)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", "http://", "ftp://judge/v1", ""])
def test_only_web_addresses_are_judges(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a judge"):
        Judge(url, "a-model")


def test_the_score_asks_about_takeovers_only_and_reports_the_mean(judge_with: Any, tmp_path: Path) -> None:
    _, server = judge_with((200, '{"grade": 4}'))
    folder = copied(tmp_path / "out", "synthetic_user_interruption/1", "synthetic_user_interruption/3")
    arguments = ["--judge", server.url, "--judge-model", "a-model", "--at-least", "interruption_answer=4.5", "--json"]
    done = CliRunner().invoke(main, ["fdb", "score", str(folder), *arguments], env={"PPLEX_JUDGE_KEY": "from-outside"})
    measures = {one["name"]: one for section in json.loads(done.stdout)["sections"] for one in section["measures"]}
    assert done.exit_code == 1 and measures["synthetic_user_interruption.answer"]["value"] == 4
    assert [headers["Authorization"] for _, headers, _ in server.requests] == ["Bearer from-outside"]
    assert "Can we talk about fiction books instead?" in server.requests[0][2]["messages"][1]["content"]
