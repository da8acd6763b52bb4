"""`pplex-export fdb run`, as a user runs it on a miniature of the benchmark."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import unprivileged
from click.testing import CliRunner, Result
from miniature import CLEAN, ROLE, SAMPLES, SERVICE, make_miniature
from recorded import write_speech

from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.runtime.locks import take_lock
from pplex.runtime.personas import CONVERSATION, TEACHER

AGENT = "--voice", "NATF0", "--slots", "4", "--threads", "1"
NEW = "fdb_run.json", ".fdb_run.lock"  # what OUT holds besides the answers
RECORDINGS = len(SAMPLES) + 1  # one sample has two


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature(tmp_path_factory.mktemp("miniature") / "data")


@pytest.fixture(scope="module")
def answers(tiny_bundle: Bundle, data: Path) -> Path:
    """The answers of a run without interruption; read only."""
    out = data.parent / "answers"
    result = fdb_run(tiny_bundle, data, out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def copied(answers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(answers, tmp_path / "answers"))


def fdb_run(bundle: Bundle, data: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["fdb", "run", str(bundle.folder), str(data), "--out", str(out), *AGENT, *options])


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name not in NEW}


def counts(result: Result) -> dict[str, int]:
    """The sums of the columns of the report."""
    report = json.loads(result.stdout)
    return {name: sum(report[name].values()) for name in ("answered", "kept", "failed")}


def test_every_sample_is_answered_at_16_khz_as_long_as_its_input(data: Path, answers: Path) -> None:
    for name in SAMPLES:
        folder = answers / name
        for wav in ("output.wav", "clean_output.wav") if name == CLEAN else ("output.wav",):
            heard, rate_hz = soundfile.read(folder / wav)
            asked = soundfile.info(data / name / wav.replace("output", "input"))
            assert rate_hz == 16_000 and len(heard) == round(asked.frames * 2 / 3) and np.abs(heard).max() > 0.01
        pieces = json.loads((folder / "agent_text.json").read_text())
        assert len(pieces) == -(-soundfile.info(data / name / "input.wav").frames // 1920)
        facts = {path.name: path.read_bytes() for path in (data / name).glob("*.json")}
        assert facts and all((folder / file).read_bytes() == content for file, content in facts.items())
    assert not list(answers.rglob("input.wav")) and not list(answers.rglob("*.part"))


@pytest.mark.parametrize(
    "name, persona, stem",
    [
        ("candor_turn_taking/10", CONVERSATION, ""),
        ("synthetic_pause_handling/1", CONVERSATION, ""),
        ("icc_backchannel/2", CONVERSATION, ""),
        ("synthetic_user_interruption/1", TEACHER, ""),
        (CLEAN, TEACHER, ""),
        (CLEAN, TEACHER, "clean_"),
        (SERVICE, ROLE, ""),
    ],
)
def test_every_file_equals_that_of_run(
    tiny_bundle: Bundle, data: Path, answers: Path, tmp_path: Path, name: str, persona: str, stem: str
) -> None:
    wav, text = tmp_path / "agent.wav", tmp_path / "agent.json"
    arguments = ["run", tiny_bundle.folder, "--input-wav", data / name / f"{stem}input.wav", "--output-wav", wav]
    agent = ["--output-text", text, "--output-rate", "16000", "--seed", "42424242", "--text-prompt", persona, *AGENT]
    result = CliRunner().invoke(main, [str(one) for one in (*arguments, *agent)])
    assert result.exit_code == 0, result.output
    assert wav.read_bytes() == (answers / name / f"{stem}output.wav").read_bytes()
    assert text.read_bytes() == (answers / name / f"{stem}agent_text.json").read_bytes()


SLOWLY = """
import time
from pathlib import Path
from pplex.runtime.session import Runtime
step = Runtime.step
def step_slowly(self, heard):
    time.sleep(0.5 * (len(list(Path({out!r}).rglob("*output.wav"))) >= 3))
    return step(self, heard)
Runtime.step = step_slowly
from pplex.cli import main
main()
"""


def start(bundle: Bundle, data: Path, out: Path) -> subprocess.Popen[str]:
    """A process of a run, once it has written three answers. The rest takes longer than a signal."""
    command = [sys.executable, "-c", SLOWLY.format(out=str(out)), "fdb", "run", str(bundle.folder), str(data)]
    process = subprocess.Popen([*command, "--out", str(out), *AGENT], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*output.wav"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_ctrl_c_says_how_to_go_on(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    process = start(tiny_bundle, data, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "give the same command again.\n" in said and "Traceback" not in said
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_killed_run_goes_on_and_ends_with_the_same_files(
    tiny_bundle: Bundle, data: Path, answers: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(tiny_bundle, data, out)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*output.wav")}
    assert 3 <= len(done) < RECORDINGS
    part = next(iter(done)).with_name(".0123456789abcdef.part")  # what a killed write leaves
    shutil.move(next(iter(done)), part)

    result = fdb_run(tiny_bundle, data, out, "--json")
    assert result.exit_code == 0, result.output
    assert counts(result) == {"answered": RECORDINGS - len(done) + 1, "kept": len(done) - 1, "failed": 0}
    assert files(out) == files(answers)
    assert sum(path.stat().st_mtime_ns == written for path, written in done.items()) == len(done) - 1
    again = fdb_run(tiny_bundle, data, out, "--json")
    assert again.exit_code == 0 and counts(again) == {"answered": 0, "kept": RECORDINGS, "failed": 0}


def test_a_bad_recording_is_a_row_at_the_end_and_can_be_repaired(
    tiny_bundle: Bundle, data: Path, answers: Path, tmp_path: Path
) -> None:
    broken, out = Path(shutil.copytree(data, tmp_path / "data")), tmp_path / "out"
    (broken / "candor_turn_taking/2/input.wav").write_bytes(b"no sound" * 100)
    result = fdb_run(tiny_bundle, broken, out)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "1 without an answer:" in result.stdout
    assert "candor_turn_taking/2/input.wav is damaged or not audio" in result.stdout.splitlines()[-1]
    missing = {name for name in files(answers) if name not in files(out)}
    assert {str(Path(name).parent) for name in missing} == {"candor_turn_taking/2"}
    shutil.copy(data / "candor_turn_taking/2/input.wav", broken / "candor_turn_taking/2/input.wav")
    result = fdb_run(tiny_bundle, broken, out, "--json")
    assert result.exit_code == 0 and counts(result) == {"answered": 1, "kept": RECORDINGS - 1, "failed": 0}
    assert files(out) == files(answers)


def test_what_is_not_a_recording_or_a_fact_stops_no_other_sample(
    tiny_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    turns, good = tmp_path / "data" / "candor_turn_taking", data / "candor_turn_taking" / "1"
    for name in ("1", "2", "3", "4", os.fsdecode(b"\xff\xfe")):
        shutil.copytree(good, turns / name)
    (turns / "1/notes.json").mkdir()
    (turns / "1/gone.json").symlink_to("nowhere")
    os.mkfifo(turns / "1/pipe.json")  # reading it would never end
    (turns / "2/input.wav").unlink()
    (turns / "2/input.wav").symlink_to("nowhere")
    (turns / "3/input.wav").unlink()
    (turns / "3/input.wav").mkdir()
    for _ in range(2):
        result = fdb_run(tiny_bundle, tmp_path / "data", tmp_path / "out", "--json")
        assert result.exit_code == 1, result.output
        why = json.loads(result.stdout)["failures"]
        assert [Path(name).parent.name for name in why] == ["2", "3"]
        assert all(words in reason for words, reason in zip(("not exist", "a folder"), why.values(), strict=True))
    assert counts(result) == {"answered": 0, "kept": 3, "failed": 2}


def test_bytes_in_a_name_that_are_no_text_can_be_reported(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = tmp_path / "data" / "pause_handling" / os.fsdecode(b"\xff")
    sample.mkdir(parents=True)
    (sample / "input.wav").write_bytes(b"")
    result = fdb_run(tiny_bundle, tmp_path / "data", tmp_path / "out")
    assert result.exit_code == 1 and "pause_handling/\\udcff/input.wav is empty" in result.stdout


def test_folders_behind_links_are_answered_once(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    linked = tmp_path / "data"
    shutil.copytree(data / "candor_turn_taking/1", linked / "candor_turn_taking/1")
    (linked / "candor_turn_taking/2").symlink_to(data / "candor_turn_taking/2")
    (linked / "icc_backchannel").symlink_to(data / "icc_backchannel")
    (linked / "latest").symlink_to("candor_turn_taking")
    (linked / "candor_turn_taking/loop").symlink_to("..")
    result = fdb_run(tiny_bundle, linked, tmp_path / "out", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["answered"] == {
        "candor_turn_taking": 2,
        "icc_backchannel": 2,
    }


@pytest.mark.skipif(unprivileged.why_not() is not None, reason=str(unprivileged.why_not()))
def test_a_fact_that_may_not_be_read_is_a_row(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    turns = Path(shutil.copytree(data / "candor_turn_taking", tmp_path / "data" / "candor_turn_taking"))
    (turns / "2/turn_taking.json").chmod(0)
    arguments = ["fdb", "run", tiny_bundle.folder, tmp_path / "data", "--out", tmp_path / "out", "--json", *AGENT]
    result = unprivileged.run(unprivileged.MAIN, *arguments)
    report = json.loads(result.stdout)
    assert result.returncode == 1 and report["answered"] == {"candor_turn_taking": 2}
    assert "turn_taking.json cannot be read: Permission denied" in report["failures"].popitem()[1]


def test_a_place_of_a_fact_that_is_a_folder_is_refused_before_the_work(
    tiny_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "candor_turn_taking/2/turn_taking.json").mkdir(parents=True)
    result = fdb_run(tiny_bundle, data, tmp_path)
    assert result.exit_code == 1 and "turn_taking.json is a folder. Name a file." in result.stderr
    assert not list(tmp_path.rglob("*.wav"))


@pytest.mark.parametrize(
    "options, rows",
    [
        (("--seed", "7"), ["- seed of pause handling: 42424242 there, 7 here"]),
        (("--seed-of", "interruption", "7"), ["- seed of user interruption: 42424242 there, 7 here"]),
        (("--text-prompt-of", "turn-taking", ""), [f"- persona of turn-taking: {CONVERSATION!r} there, '' here"]),
        (("--voice", "none", "--greedy"), ["- voice: 'NATF0' there, None here", "- sampling: "]),
    ],
)
def test_answers_with_other_settings_are_refused(
    tiny_bundle: Bundle, data: Path, copied: Path, options: tuple[str, ...], rows: list[str]
) -> None:
    before = files(copied)
    result = fdb_run(tiny_bundle, data, copied, *options)
    assert result.exit_code == 1 and "has answers with other settings:" in result.stderr
    assert all(row in result.stderr for row in rows) and "Name another --out" in result.stderr
    assert files(copied) == before


def test_the_role_of_a_service_can_be_replaced(tiny_bundle: Bundle, data: Path, answers: Path, tmp_path: Path) -> None:
    result = fdb_run(tiny_bundle, data / "service", tmp_path, "--text-prompt-of", "service", TEACHER)
    assert result.exit_code == 0
    assert (tmp_path / SERVICE / "output.wav").read_bytes() != (answers / SERVICE / "output.wav").read_bytes()
    result = fdb_run(tiny_bundle, data / "service", tmp_path)
    assert f"- persona of service dialogue: {TEACHER!r} there, 'that of each sample' here" in result.stderr


def test_a_service_with_another_role_is_answered_again(
    tiny_bundle: Bundle, data: Path, copied: Path, tmp_path: Path
) -> None:
    changed, before = Path(shutil.copytree(data, tmp_path / "data")), (copied / SERVICE / "output.wav").read_bytes()
    metadata = changed / SERVICE / "metadata.json"
    metadata.write_text(metadata.read_text().replace("six", "nine"))
    result = fdb_run(tiny_bundle, changed, copied, "--json")
    assert result.exit_code == 0 and counts(result) == {"answered": 1, "kept": RECORDINGS - 1, "failed": 0}
    assert (copied / SERVICE / "output.wav").read_bytes() != before


def test_a_service_without_a_role_is_a_row(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(data / "service", tmp_path / "data" / "service"))
    for content in ("{", '{"prompt_text": 5}', '{"question_text": "?"}'):
        (broken / "0" / "metadata.json").write_text(content)
        result = fdb_run(tiny_bundle, tmp_path / "data", tmp_path / "out")
        assert result.exit_code == 1 and "Traceback" not in result.output
        assert "service/0/output.wav: metadata.json" in result.stdout.splitlines()[-1]


def test_a_service_with_a_role_that_does_not_fit_is_a_row(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(data / "service", tmp_path / "data" / "service"))
    shutil.copytree(broken / "0", broken / "1")
    (broken / "1" / "metadata.json").write_text(json.dumps({"prompt_text": ROLE * 9, "question_text": "?"}))
    (broken / "0" / "metadata.json").write_text(json.dumps({"prompt_text": "Ann \ud800", "question_text": "?"}))
    result = fdb_run(tiny_bundle, tmp_path / "data", tmp_path / "out", "--json")
    assert result.exit_code == 1 and counts(result) == {"answered": 1, "kept": 0, "failed": 1}
    assert "service/1/input.wav: The prompt takes" in json.loads(result.stdout)["failures"].popitem()[1]


def test_another_bundle_is_refused(voiceless_bundle: Bundle, data: Path, copied: Path) -> None:
    result = fdb_run(voiceless_bundle, data, copied, "--voice", "none")
    assert result.exit_code == 1 and "- bundle: " in result.stderr


def test_settings_that_failed_do_not_bind_the_next_run(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    result = fdb_run(tiny_bundle, data / "icc_backchannel", tmp_path / "out", "--voice", "NATF9")
    assert result.exit_code == 1 and "Unknown voice 'NATF9'" in result.stderr
    assert fdb_run(tiny_bundle, data / "icc_backchannel", tmp_path / "out").exit_code == 0


def test_a_changed_recording_is_answered_again_and_its_words_are_removed(
    tiny_bundle: Bundle, data: Path, copied: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(data, tmp_path / "data"))
    for name in ("icc_backchannel/1", "icc_backchannel/2"):
        (copied / name / "output.json").write_text("{}")
    shutil.copy(data / "icc_backchannel/2/input.wav", changed / "icc_backchannel/1/input.wav")
    (changed / "icc_backchannel/2/transcription.json").write_text("[]")
    result = fdb_run(tiny_bundle, changed, copied, "--json")
    assert result.exit_code == 0 and counts(result) == {"answered": 1, "kept": RECORDINGS - 1, "failed": 0}
    first, second = copied / "icc_backchannel/1", copied / "icc_backchannel/2"
    assert (first / "output.wav").read_bytes() == (second / "output.wav").read_bytes()
    assert not (first / "output.json").exists() and (second / "output.json").exists()
    assert (second / "transcription.json").read_text() == "[]"


def test_answers_of_another_program_are_not_replaced(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    beside = Path(shutil.copytree(data, tmp_path / "data"))
    write_speech(beside / "icc_backchannel/1/output.wav", 0.5)
    before = files(beside)
    result = fdb_run(tiny_bundle, beside, beside)
    assert result.exit_code == 1 and "icc_backchannel/1/output.wav exists (1 such files)" in result.stderr
    assert files(beside) == before


def test_answers_may_lie_beside_the_samples(tiny_bundle: Bundle, data: Path, answers: Path, tmp_path: Path) -> None:
    beside = Path(shutil.copytree(data / "icc_backchannel", tmp_path / "icc_backchannel"))
    for expected in ({"answered": 2, "kept": 0, "failed": 0}, {"answered": 0, "kept": 2, "failed": 0}):
        result = fdb_run(tiny_bundle, beside, tmp_path, "--json")
        assert result.exit_code == 0 and counts(result) == expected
    assert json.loads((tmp_path / "fdb_run.json").read_text())["notes"]["data"] == str(tmp_path)
    for name in ("icc_backchannel/1/output.wav", "icc_backchannel/2/agent_text.json"):
        assert (tmp_path / name).read_bytes() == (answers / name).read_bytes()


def test_any_folder_of_recordings_is_answered(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for name in ("calls/one.wav", "calls/more/two.flac"):
        write_speech(tmp_path / name, 0.5)
    for expected in ({"answered": 2, "kept": 0, "failed": 0}, {"answered": 0, "kept": 2, "failed": 0}):
        result = fdb_run(tiny_bundle, tmp_path / "calls", tmp_path / "calls/answers", "--json")
        assert result.exit_code == 0 and counts(result) == expected, result.output
    found = files(tmp_path / "calls/answers")
    assert set(found) == {
        f"{name}/{file}" for name in ("one", "more/two") for file in ("output.wav", "agent_text.json")
    }
    assert soundfile.info(tmp_path / "calls/answers/one/output.wav").frames == 8000


def test_one_process_answers_in_a_folder(tiny_bundle: Bundle, data: Path, copied: Path) -> None:
    lock = take_lock(copied / ".fdb_run.lock")
    assert lock is not None
    result = fdb_run(tiny_bundle, data, copied)
    os.close(lock)
    assert result.exit_code == 1 and "Another process answers in" in result.stderr


@pytest.mark.parametrize("name, words", [("missing", "is not a folder"), ("empty", "holds neither samples")])
def test_a_folder_without_recordings_is_refused(tiny_bundle: Bundle, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    result = fdb_run(tiny_bundle, tmp_path / name, tmp_path / "out")
    assert result.exit_code == 1 and words in result.stderr and not (tmp_path / "out").exists()


def test_a_damaged_record_is_refused(tiny_bundle: Bundle, data: Path, copied: Path) -> None:
    (copied / "fdb_run.json").write_text('{"schema": 1, "settings": 3')
    result = fdb_run(tiny_bundle, data, copied)
    assert result.exit_code == 1 and "fdb_run.json is damaged" in result.stderr


def test_a_model_without_prompts_is_run(moshi_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    arguments = ["fdb", "run", str(moshi_bundle.folder), str(data / "icc_backchannel"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--slots", "2"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").rglob("output.wav"))) == 2
