"""A miniature of the benchmark, answered by two bundles' settings, scored, reported and compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from miniature import make_miniature

from pplex.cli import main
from pplex.runtime.bundle import Bundle
from pplex.validate.report.schema import read_report


@pytest.fixture(scope="module")
def answers(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Answers of the same bundle with two seeds."""
    folder = tmp_path_factory.mktemp("fdb")
    make_miniature(folder / "data")
    outs = [folder / f"seed{seed}" for seed in (1, 2)]
    for seed, out in enumerate(outs, 1):
        arguments = ["fdb", "run", tiny_bundle.folder, folder / "data", "--out", out, "--slots", 8, "--seed", seed]
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
    return outs


def test_all_samples_are_scored_and_compared(answers: list[Path], tmp_path: Path) -> None:
    arguments = [
        "fdb",
        "score",
        answers[0],
        "--words",
        "agent",
        "--compare",
        answers[1],
        "--report",
        tmp_path / "report",
    ]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    report = read_report(tmp_path / "report")
    measures = {measure.name: measure.value for measure in report.measures}
    assert {f"{name}.tor" for name in ("candor_pause_handling", "candor_turn_taking", "icc_backchannel")} <= {*measures}
    assert report.bundle["samples"] == 11 and report.bundle["words"] == "the model's own text stream"
    assert "background_speech.rate_after" in measures and "service.adherence" not in measures  # without a judge
    assert any("seed" in name for name in report.settings)
    compared = next(section for section in report.sections if section.key.startswith("compared"))
    assert {row[1] for row in compared.tables[0].rows if str(row[0]).endswith(".tor")} == {1, 2, 3}


def test_the_users_side_is_found_in_the_data_of_the_run(answers: list[Path], tmp_path: Path) -> None:
    sample = answers[0] / "candor_pause_handling" / "2"
    words = {"chunks": [{"text": "over", "timestamp": [0, 2]}]}
    (sample / "output.json").write_text(json.dumps(words))
    done = CliRunner().invoke(
        main, ["fdb", "score", str(answers[0] / "candor_pause_handling"), "--report", str(tmp_path / "report")]
    )
    assert done.exit_code == 0, done.output
    sound, rate_hz = soundfile.read(tmp_path / "report" / "sounds" / "worst-01.wav")  # [samples, user and agent]
    assert rate_hz == 16_000 and sound.shape[1] == 2 and np.abs(sound).max(axis=0).min() > 0.01


def test_samples_that_a_stopped_run_has_not_reached_are_faults(answers: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(answers[1], out)
    for name in ("candor_pause_handling/2", "icc_backchannel/1"):
        shutil.rmtree(out / name)
    done = CliRunner().invoke(main, ["fdb", "score", str(out), "--words", "agent"])
    assert done.exit_code == 1 and done.output.count("fdb run was stopped before it answered this sample") == 2
    done = CliRunner().invoke(main, ["fdb", "score", str(out / "icc_backchannel"), "--words", "agent"])
    assert done.output.count("fdb run was stopped") == 1, "the other one is not in this task's folder"
