"""ServiceDuplexBench: two grades by a judge, of what the agent says in its role."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pplex.cli import main

ROLE, QUESTION, REPLY = "You sell bread, and nothing else.", "May I have a car?", "We only sell bread."


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Three samples: an answer, a silent agent, and an answer whose grades do not come."""
    for number, text in enumerate((REPLY, "", "Well, perhaps.")):
        sample = tmp_path / "service" / str(number)
        sample.mkdir(parents=True)
        (sample / "metadata.json").write_text(
            json.dumps({"prompt_text": ROLE, "question_text": QUESTION, "question_index": number, "speaker_index": 0})
        )
        chunks = [{"text": word, "timestamp": [i, i + 0.5]} for i, word in enumerate(text.split())]
        (sample / "output.json").write_text(json.dumps({"chunks": chunks}))
    return tmp_path / "service"


def score(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["fdb", "score", str(folder), *arguments])


def test_the_judge_gets_role_question_and_reply_and_silence_is_zero(answers: Path, judge_with: Any) -> None:
    _, server = judge_with((200, '{"naturalness": 3, "adherence": 5}'), (400, "no"))
    done = score(answers, "--judge", server.url, "--judge-model", "m", "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1  # the third sample has no grade
    asked = json.loads(server.requests[0][2]["messages"][1]["content"])
    assert asked == {"instructions": ROLE, "customer": QUESTION, "agent": REPLY} and len(server.requests) == 2
    assert server.requests[0][2]["temperature"] == 0
    measures = {one["name"]: one for section in report["sections"] for one in section["measures"]}
    assert measures["service.adherence"]["value"] == 2.5 and measures["service.naturalness"]["value"] == 1.5
    assert "Of 2 samples" in measures["service.adherence"]["what"]
    table = report["sections"][0]["tables"][0]
    card = dict(zip(table["columns"], next(row for row in table["rows"] if "2026-01-15" in row[1]), strict=True))
    assert card["task adherence, of 5"] == "4.400" and card["naturalness, of 5"] == "-"
    assert report["worst"][0]["why"] == "the judge gave 0 of 5 for task adherence"


def test_a_limit_of_adherence(answers: Path, judge_with: Any) -> None:
    _, server = judge_with((200, '{"naturalness": 4, "adherence": 5}'))
    judge = "--judge", server.url, "--judge-model", "m", "--at-least"
    assert score(answers, *judge, "service_adherence=3.3").exit_code == 0
    assert score(answers, *judge, "service_adherence=3.4").exit_code == 1


def test_without_a_judge_nothing_is_graded(answers: Path) -> None:
    done = score(answers)
    assert done.exit_code == 0 and "need a judge" in done.stdout


def test_damaged_metadata_is_a_row(answers: Path) -> None:
    (answers / "1" / "metadata.json").write_text("{")
    (answers / "2" / "metadata.json").write_text(json.dumps({"prompt_text": ROLE}))
    done = score(answers)
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert "service/1" in done.stdout and "metadata.json has no text question_text" in done.stdout
