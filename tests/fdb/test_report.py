"""The command from end to end: its text, its files, its exit codes, and the page in a browser."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from chromium_tab import CHROMIUM
from click.testing import CliRunner, Result
from planted_agents import copied
from scipy.spatial.distance import jensenshannon

from pplex.cli import main
from pplex.fdb.comparison import paired
from pplex.fdb.measures import Backchannels
from pplex.fdb.score import score
from pplex.fdb.segments import read_recording, rounded_segments
from pplex.validate.report.schema import read_report

TURN = "candor_turn_taking"
EVERY = (f"{TURN}/1", f"{TURN}/3", f"{TURN}/5", f"{TURN}/7")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fdb", "score", *map(str, arguments)])


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    return copied(tmp_path / "out")


def speak(folder: Path, sample: str, *names: str) -> None:
    """A tone as the recordings `names` of a sample."""
    for name in names:
        soundfile.write(folder / sample / name, 0.1 * np.sin(np.arange(32_000) / 20), 16_000)


def test_every_file_has_the_figures_and_the_published_ones(agents: Path, tmp_path: Path) -> None:
    done = run(agents, "--report", tmp_path / "report")
    assert done.exit_code == 0, done.output
    report = read_report(tmp_path / "report")
    values = {measure.name: measure.value for measure in report.measures}
    assert values[f"{TURN}.tor"] == 0.75 and values["synthetic_user_interruption.latency"] == pytest.approx(0.4)
    assert values["candor_pause_handling.tor"] == pytest.approx(2 / 3)
    for text in (done.stdout, *((tmp_path / "report" / name).read_text() for name in ("report.md", "report.html"))):
        assert "0.750 ± 0.250" in text and "0.067 ± 0.067" in text
        assert "0.992" in text and "0.908" in text and "2026-01-15" in text and "2026-02-21" in text
        assert "output.json of another program" in text and "JSD is missing" in text
    assert not list((tmp_path / "report").rglob(".*.part"))


def test_json_on_standard_output(agents: Path) -> None:
    found = json.loads(run(agents, "--json").stdout)
    assert found["sections"][0]["key"] == "results" and found["bundle"]["samples"] == 11


@pytest.mark.parametrize(
    "limit, code",
    [
        (("--at-least", "turn_taking_tor=0.7"), 0),
        (("--at-least", "turn_taking_tor=0.8"), 1),
        (("--at-most", "pause_tor=0.7"), 0),
        (("--at-most", "pause_tor=0.6"), 1),
        (("--at-most", "turn_taking_latency=0.01"), 1),
    ],
)
def test_limits_decide_the_exit_code(agents: Path, limit: tuple[str, str], code: int) -> None:
    done = run(agents, *limit)
    assert done.exit_code == code
    assert ("FAILED" if code else "PASSED") in done.stdout


def test_a_silent_agent_has_no_latency_and_breaks_its_limit(tmp_path: Path) -> None:
    folder = copied(tmp_path / "out", f"{TURN}/1")
    assert run(folder).exit_code == 0
    done = run(folder, "--at-most", "turn_taking_latency=1")
    assert done.exit_code == 1 and "not measured" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--at-least", "pause_tor"), "NAME=NUMBER"),
        (("--at-least", "pause_tor=nan"), "NAME=NUMBER"),
        (("--judge", "http://127.0.0.1:1/v1"), "--judge-model"),
        (("--judge-model", "m"), "--judge URL"),
        (("--words-model", "tiny.en"), "--words whisper"),
        (("--words", "guess"), "guess"),
    ],
)
def test_usage_errors(agents: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run(agents, *arguments)
    assert done.exit_code == 2 and words in done.output


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--at-least", "patience=1"), "patience cannot have a limit"),
        (("--repo", "missing"), "not a folder"),
        (("--judge", "file:///etc/passwd", "--judge-model", "m"), "not the address of a judge"),
        (("--compare", "missing"), "no samples"),
    ],
)
def test_mistakes_are_messages(agents: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run(agents, *arguments)
    assert done.exit_code == 1 and words in done.output and "Traceback" not in done.output


def test_an_unscored_sample_is_named_and_fails_the_check(agents: Path, tmp_path: Path) -> None:
    (agents / TURN / "7" / "output.json").write_text("{")
    done = run(agents, "--report", tmp_path / "report")
    assert done.exit_code == 1 and f"{TURN}/7" in done.stdout and "unscored: 1 > 0" in done.stdout
    assert f"{TURN}/7" in (tmp_path / "report" / "report.html").read_text()


def test_without_limits_there_is_no_verdict(agents: Path, tmp_path: Path) -> None:
    done = run(agents, "--report", tmp_path / "report")
    assert "VERDICT" not in done.stdout + (tmp_path / "report" / "report.html").read_text()


def test_whisper_that_is_not_installed_is_named(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    done = run(agents, "--words", "whisper")
    assert done.exit_code == 1 and "pip install 'pplex-export[transcribe]'" in done.output


def test_two_engines_are_paired_by_sample(agents: Path, tmp_path: Path) -> None:
    other = copied(tmp_path / "other", *EVERY)
    for i in (3, 5, 7):
        (other / TURN / str(i) / "output.json").write_text('{"chunks": []}')
    found = {one.metric.key: one for one in paired(score(agents), score(other))}
    assert (found["tor"].first, found["tor"].second, found["tor"].count) == (0.75, 0, 4)
    assert found["tor"].p == pytest.approx(2 / 2**3)  # three pairs differ, all in one direction
    assert "latency" not in found  # the other never took over
    assert re.search(r"candor_turn_taking.tor +4 +0.75 +0 +0.75 +0.25\n", run(agents, "--compare", other).stdout)


def test_the_reference_has_rows_of_its_own(agents: Path, tmp_path: Path) -> None:
    done = run(agents, "--reference", copied(tmp_path / "reference"))
    assert re.search(r"candor_turn_taking +float32 reference +4 +0.750", done.stdout)


def test_peoples_backchannels_are_found_in_a_checkout(agents: Path, tmp_path: Path) -> None:
    """In a folder like the benchmark's repository; the distance is scipy's."""
    checkout, people = tmp_path / "Full-Duplex-Bench", [0.1, 0.4, 0.2, 0.3]
    for name in (".git/HEAD", "README.md", "v1_v1.5/README.md", "v1_v1.5/evaluation/evaluate.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("{}")
    path = checkout / "v1_v1.5" / "evaluation" / "icc_gt_distribution.json"
    path.write_text(json.dumps({"1": people, "3": people}))
    done = run(agents, "--repo", checkout, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["settings"]["people"] == str(checkout) and "JSD is missing" not in done.stdout
    table = next(one for one in report["sections"] if one["key"] == "icc_backchannel")["tables"][0]
    found = {row[0]: row[table["columns"].index("JSD")] for row in table["rows"]}
    for number, jsd in found.items():
        recording = read_recording(agents / "icc_backchannel" / number / "output.wav")
        counts = np.full(int(recording.seconds / 0.2) + 1, 1e-10)
        for start, end in Backchannels(rounded_segments(recording), ()).heard:
            counts[int(start / 0.2) : int(end / 0.2) + 1] += 1
        stretched = np.interp(np.linspace(0, 1, len(counts)), np.linspace(0, 1, 4), people)
        assert jsd == pytest.approx(float(jensenshannon(counts, stretched)), abs=1e-6)
    assert found.keys() == {"1", "3"}


def test_the_settings_of_a_run_are_reported_and_its_data_is_found(agents: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / TURN / "3").mkdir(parents=True)
    (agents / TURN / "3" / "turn_taking.json").rename(tmp_path / "data" / TURN / "3" / "turn_taking.json")
    record = {"settings": {"voice": "NATF2"}, "notes": {"data": str(tmp_path / "data")}}
    (agents / "fdb_run.json").write_text(json.dumps(record))
    done = run(agents, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["settings"]["run: voice"] == "NATF2"


def test_the_report_of_one_run_does_not_keep_sounds_of_the_last(agents: Path, tmp_path: Path) -> None:
    for sample in (3, 5):
        speak(agents / "candor_pause_handling", str(sample), "output.wav")
    run(agents, "--report", tmp_path / "report")
    assert len(list((tmp_path / "report" / "sounds").iterdir())) == 2
    (agents / "candor_pause_handling" / "5" / "output.wav").unlink()
    run(agents, "--report", tmp_path / "report")
    assert len(list((tmp_path / "report" / "sounds").iterdir())) == 1


def test_the_page_plays_the_worst_samples(agents: Path, tmp_path: Path) -> None:
    """Opened from the disk, in a narrow window: no errors, nothing beyond its width, and a sound that plays."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    hostile = '</script><img src=x onerror="alert(1)">\u202e'
    words = {"chunks": [{"text": hostile, "timestamp": [1, 5]}]}
    (agents / "candor_pause_handling" / "3" / "output.json").write_text(json.dumps(words))
    speak(agents / "candor_pause_handling", "3", "input.wav", "output.wav")
    run(agents, "--report", tmp_path / "report", "--compare", agents)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab, complaints = browser.new_page(viewport={"width": 390, "height": 844}), list[str]()
        tab.on("console", lambda line: complaints.append(line.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.goto((tmp_path / "report" / "report.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        assert duration_of_first(tab) == pytest.approx(2, abs=0.01)
        assert tab.locator("#worst figure").count() == 4 and "onerror" in tab.locator("#worst").inner_text()
        browser.close()
    assert not complaints


def duration_of_first(tab: Any) -> float:
    """Loads the page's first sound; returns its seconds."""
    return float(
        tab.evaluate(
            """() => new Promise((resolve, reject) => {
                const sound = document.querySelector("audio");
                sound.onloadedmetadata = () => resolve(sound.duration);
                sound.onerror = () => reject(new Error("the sound cannot be played"));
                sound.load();
            })"""
        )
    )
