"""The judge: a server that speaks OpenAI's chat completions, its grades and its faults."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from judge_server import BluntServer, Reply
from planted_agents import copied

from pplex.cli import main
from pplex.fdb import judge as judge_module
from pplex.fdb.judge import ATTEMPTS, GIVES_UP_AFTER, Judge
from pplex.fdb.rubrics import BEHAVIOUR, INTERRUPTION, SERVICE
from pplex.runtime.errors import ConfigError, SampleError

ASKED = {"user": "Name some books.", "interruption": "About cooking instead.", "assistant": "Sure, here is one."}


def test_it_is_asked_with_the_model_the_key_and_all_texts(judge_with: Any) -> None:
    judge, server = judge_with((200, '{"grade": 4}'))
    assert judge(INTERRUPTION, ASKED) == 4
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "a-model" and all(text in body["messages"][1]["content"] for text in ASKED.values())


@pytest.mark.parametrize(
    "words, grade",
    [('```json\n{"grade": 3.5}\n```', 3.5), ("5", 5), ('{"grade": "2", "why": "10 words"}', 2), ("0", 0)],
)
def test_models_write_grades_in_many_ways(judge_with: Any, words: str, grade: float) -> None:
    assert judge_with((200, words))[0](INTERRUPTION, ASKED) == grade


@pytest.mark.parametrize(
    "words, grades",
    [
        ('{"naturalness": 3, "adherence": 4.5}', (3, 4.5)),
        ('Sure:\n{"adherence": "5",\n "why": "refuses, as it must", "naturalness": "0"}', (0, 5)),
    ],
)
def test_two_grades_of_a_service(judge_with: Any, words: str, grades: tuple[float, float]) -> None:
    assert judge_with((200, words))[0](SERVICE, ASKED) == grades


@pytest.mark.parametrize("words", ['{"behaviour": "RESPOND"}', "RESPOND", 'So: {"behavior": "C_RESPOND"}'])
def test_models_write_classes_in_many_ways(judge_with: Any, words: str) -> None:
    assert judge_with((200, words))[0](BEHAVIOUR, ASKED) == "RESPOND"


def test_a_class_that_is_none_is_refused(judge_with: Any) -> None:
    with pytest.raises(SampleError, match="none of RESPOND"):
        judge_with((200, '{"behaviour": "IGNORE"}'))[0](BEHAVIOUR, ASKED)


@pytest.mark.parametrize("words", ["4", '{"naturalness": 3}', '{"naturalness": 3, "adherence": 7}'])
def test_half_of_the_grades_is_none(judge_with: Any, words: str) -> None:
    with pytest.raises(SampleError, match="no grade from 0 to 5"):
        judge_with((200, words))[0](SERVICE, ASKED)


@pytest.mark.parametrize("first", [(500, "down"), (429, "slow down"), (200, "no idea"), (200, '{"grade": 9}')])
def test_another_attempt_helps(judge_with: Any, first: Reply) -> None:
    judge, server = judge_with(first, (200, '{"grade": 1}'))
    assert judge(INTERRUPTION, ASKED) == 1 and len(server.requests) == 2


def test_attempts_are_limited_and_then_samples_too(judge_with: Any) -> None:
    judge, server = judge_with((503, "overloaded"))
    for _ in range(GIVES_UP_AFTER + 5):
        with pytest.raises(SampleError, match="503: overloaded"):
            judge(INTERRUPTION, ASKED)
    assert len(server.requests) == ATTEMPTS * GIVES_UP_AFTER


def test_a_refusal_is_final(judge_with: Any) -> None:
    judge, server = judge_with((401, "wrong key"))
    for _ in range(3):
        with pytest.raises(SampleError, match="401: wrong key"):
            judge(INTERRUPTION, ASKED)
    assert len(server.requests) == 1


def test_nobody_there(judge_with: Any) -> None:
    judge, server = judge_with((200, "5"))
    server.close()
    with pytest.raises(SampleError, match="refused"):
        judge(INTERRUPTION, ASKED)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "127.0.0.1:8000", "http://", "ftp://judge/v1", "", "http://[::1", "http://h:p/v1"]
)
def test_only_web_addresses_are_judges(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a judge"):
        Judge(url, "a-model")


HEAD = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    "parts, words",
    [
        ((HEAD % (b"200 OK", 200_000), b"[" * 200_000), "RecursionError"),
        ((HEAD % (b"500 Oh", 100), b"half of a reason"), "answered 500"),
        ((HEAD % (b"200 OK", 100), *[b" "] * 100), "more than 0.5 s|timed out"),
        ((HEAD % (b"200 OK", 13), b"<html></html>"), "JSONDecodeError"),
    ],
)
def test_replies_that_no_judge_gives(monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...], words: str) -> None:
    monkeypatch.setattr(judge_module, "TIMEOUT_S", 0.5)
    with closing(BluntServer(*parts, pause_s=0.02)) as server, pytest.raises(SampleError, match=words):
        Judge(server.url, "a-model", pause_s=0.01)(INTERRUPTION, ASKED)


def test_a_redirect_gets_neither_the_key_nor_the_words(judge_with: Any) -> None:
    _, other = judge_with((200, '{"grade": 4}'))
    head = f"HTTP/1.1 302 Found\r\nLocation: {other.url}/\r\nContent-Length: 0\r\n\r\n".encode()
    with closing(BluntServer(head)) as server, pytest.raises(SampleError, match=f"302: it refers to {other.url}"):
        Judge(server.url, "a-model", "secret")(INTERRUPTION, ASKED)
    assert not other.requests


def test_a_key_may_end_a_line_and_is_never_in_a_message(judge_with: Any) -> None:
    _, server = judge_with((200, "5"))
    assert Judge(server.url, "a-model", "secret\n")(INTERRUPTION, ASKED) == 5
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    for key in ("secret\nsecond", "secr\u00e9t"):
        with pytest.raises(ConfigError, match="key has characters") as refused:
            Judge(server.url, "a-model", key)
        assert "secr" not in str(refused.value)


def test_the_score_asks_about_takeovers_only_and_reports_the_mean(judge_with: Any, tmp_path: Path) -> None:
    _, server = judge_with((200, '{"grade": 4}'))
    folder = copied(tmp_path / "out", "synthetic_user_interruption/1", "synthetic_user_interruption/3")
    arguments = ["--judge", server.url, "--judge-model", "a-model", "--at-least", "interruption_answer=4.5", "--json"]
    done = CliRunner().invoke(main, ["fdb", "score", str(folder), *arguments], env={"PPLEX_JUDGE_KEY": "from-outside"})
    measures = {one["name"]: one for section in json.loads(done.stdout)["sections"] for one in section["measures"]}
    assert done.exit_code == 1 and measures["synthetic_user_interruption.answer"]["value"] == 4
    assert [headers["Authorization"] for _, headers, _ in server.requests] == ["Bearer from-outside"]
    assert "Can we talk about fiction books instead?" in server.requests[0][2]["messages"][1]["content"]
