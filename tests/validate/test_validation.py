"""The command validate: its report on a correct bundle, its files, and its refusals."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from broken import broken, changed
from click.testing import CliRunner, Result
from folders import TINY

from pplex.cli import main
from pplex.cli.validation import SECTIONS as OFFERED
from pplex.export.checkpoint import LM_FILE, open_checkpoint
from pplex.runtime.bundle import MANIFEST_FILE, Bundle, Voice
from pplex.runtime.errors import ReportError
from pplex.validate.report.schema import read_report
from pplex.validate.sections.conversation import METRICS
from pplex.validate.sections.names import LEAST, SECTIONS, TOLERATED
from pplex.validate.validation import _changed, reference_of, validate

CHECKPOINT = TINY / "checkpoint"
FEW_SEEDS = (0,)
SHORT = ("--only", "drift", "--frames", "64")
SCENARIOS = ("turn-taking", "pause-handling", "backchannel", "interruption")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["validate", *map(str, arguments)])


def refusal(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    return result.stderr


@dataclass(frozen=True)
class Done:
    folder: Path
    text: str
    data: dict[str, Any]


@pytest.fixture(scope="module")
def done(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All sections once, over slightly more than the ring, with one seed."""
    folder = tmp_path_factory.mktemp("validation") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplex.validate.validation.SEEDS", FEW_SEEDS)
        result = run(tiny_bundle.folder, "--reference", CHECKPOINT, "--frames", 110, "--report", folder)
    assert result.exit_code == 0, result.output
    return Done(folder, result.stdout, json.loads((folder / "report.json").read_text()))


def values(done: Done) -> dict[str, float | None]:
    return {m["name"]: m["value"] for section in done.data["sections"] for m in section["measures"]}


def test_a_float32_bundle_is_the_same_model(done: Done) -> None:
    assert done.text.startswith("PASSED") and "FAILED" not in done.text
    assert done.data["passed"] is True and done.data["failures"] == []
    found = values(done)
    for name in ("drift.text_top1", "drift.audio_top1", "conversation.tokens_equal", "streaming.batch_tokens"):
        assert found[name] == 1, name
    assert found["drift.self_test"] == 0
    assert max(found["drift.text_kl"] or 1, found["drift.audio_kl"] or 1) < 1e-6
    assert "drift.self_test" in done.text


def test_the_report_names_bundle_and_reference(done: Done) -> None:
    data = done.data
    assert [section["key"] for section in data["sections"]] == [
        "graphs", "drift", "codec", "streaming", "conversation", "health", "speed",
    ]  # fmt: skip
    assert data["schema"] == 1 and data["bundle"]["precision"]["temporal"] == "fp32"
    assert data["bundle"]["engines"]["depth"] == "onnxruntime" and data["settings"]["frames"] == 110
    for section in data["sections"]:
        for measure in section["measures"]:
            assert measure["what"] and (measure["tolerance"] is None or measure["tolerance"]["reason"])


def test_the_report_is_written_in_every_form(done: Done) -> None:
    assert {path.name for path in done.folder.iterdir()} == {"report.json", "report.html", "report.md", "sounds"}
    assert "PASSED" in (done.folder / "report.html").read_text()
    assert "PASSED" in (done.folder / "report.md").read_text()
    assert read_report(done.folder).passed


def test_report_keeps_both_sides_of_every_conversation_as_sound(done: Done) -> None:
    sounds = {path.name: soundfile.read(path) for path in (done.folder / "sounds").iterdir()}
    runs = [*(f"seed-{seed}" for seed in FEW_SEEDS), "greedy"]
    assert set(sounds) == {
        f"{scenario}-{name}-{side}.wav" for scenario in SCENARIOS for name in runs for side in ("engine", "reference")
    }
    for name, (both, rate) in sounds.items():
        assert rate == 24_000 and both.shape[1] == 2 and np.ptp(both[:, 0]) > 0.1 and np.ptp(both[:, 1]) > 0.01, name
        other = sounds[name.replace("engine", "reference")][0]
        assert np.abs(both - other).max() < 1e-3  # float32 on both sides: the same conversation


def test_two_reports_are_shown_side_by_side(done: Done, tmp_path: Path) -> None:
    result = run("--compare", done.folder, done.folder / "report.json", "--report", tmp_path / "side")
    assert result.exit_code == 0 and "drift.text_kl" in result.stdout
    assert {path.name for path in (tmp_path / "side").iterdir()} == {
        "comparison.json", "comparison.html", "comparison.md",
    }  # fmt: skip
    printed = json.loads(run("--compare", done.folder, done.folder, "--json").stdout)
    assert all(measure["a"] == measure["b"] for measure in printed["measures"])


def test_a_fault_is_named_and_exits_with_1(tiny_bundle: Bundle, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    broken(tiny_bundle, "temporal", changed("layers.1.norm2.weight", lambda x: -x), planted)
    resigned(planted)
    only = ("--only", "graphs", "--frames", "64")
    result = run(planted, "--reference", CHECKPOINT, *only, "--report", tmp_path / "report")
    assert result.exit_code == 1
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAILED graphs.temporal.")]
    assert len(failures) == 2 and all("layers.1.gating" in line for line in failures)
    assert "layers.1.gating" in (tmp_path / "report" / "report.md").read_text()


def resigned(folder: Path) -> None:
    """Make the manifest match the files."""
    from pplex.runtime.bundle import file_sha256, manifest_digest

    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    names = [path.name for path in folder.iterdir() if path.name != MANIFEST_FILE]
    manifest["files"] = {
        name: {"nbytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names
    }
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_a_tolerance_can_be_set(tiny_bundle: Bundle) -> None:
    result = run(tiny_bundle.folder, "--reference", CHECKPOINT, *SHORT, "--tolerance", "drift.text_kl=0", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1 and data["failures"] == ["drift.text_kl"]
    (measure,) = (m for section in data["sections"] for m in section["measures"] if m["name"] == "drift.text_kl")
    assert (
        measure["tolerance"]["limit"] == 0 and "set by --tolerance, instead of 1e-06" in measure["tolerance"]["reason"]
    )


def test_an_unknown_tolerance_lists_the_known_ones(tiny_bundle: Bundle) -> None:
    said = refusal(tiny_bundle.folder, "--reference", CHECKPOINT, *SHORT, "--tolerance", "drift.txt_kl=1")
    assert "Unknown tolerance 'drift.txt_kl'" in said and "drift.text_kl" in said
    assert "Unknown tolerance 'codec.si_sdr_db'" in refusal(
        tiny_bundle.folder, "--reference", CHECKPOINT, *SHORT, "--tolerance", "codec.si_sdr_db=1"
    )


def test_the_command_offers_every_section() -> None:
    assert OFFERED == SECTIONS == tuple(TOLERATED)


def test_every_tolerance_can_be_named(done: Done) -> None:
    """Leaves out figures that agents of random weights do not have."""
    held = {m["name"] for section in done.data["sections"] for m in section["measures"] if m["tolerance"]}
    known = {name for names in TOLERATED.values() for name in names}
    turns = {f"conversation.{metric.name}" for metric in METRICS.values()}
    least = {
        m["name"]
        for section in done.data["sections"]
        for m in section["measures"]
        if (m["tolerance"] or {}).get("least")
    }
    assert least == LEAST - turns
    assert held <= known and known - held <= turns | {
        "codec.onset_shift_ms", "health.text_share", "health.longest_text",
    }  # fmt: skip


@pytest.mark.parametrize("given", ["drift.text_kl", "drift.text_kl=", "drift.text_kl=much", "drift.text_kl=nan"])
def test_a_tolerance_is_a_name_and_a_number(tiny_bundle: Bundle, given: str) -> None:
    result = run(tiny_bundle.folder, "--reference", CHECKPOINT, "--tolerance", given)
    assert result.exit_code == 2 and "NAME=NUMBER" in result.stderr


def test_another_checkpoint_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = shutil.copytree(CHECKPOINT, tmp_path / "other")
    data = bytearray((other / LM_FILE).read_bytes())
    data[-1] ^= 1
    (other / LM_FILE).write_bytes(data)
    said = refusal(tiny_bundle.folder, "--reference", other)
    assert f"was built from another checkpoint than {other}: {LM_FILE}" in said


def test_shared_files_must_equal_those_of_the_checkpoint(tiny_bundle: Bundle) -> None:
    checkpoint, config = open_checkpoint(CHECKPOINT), tiny_bundle.config
    name, voice = next(iter(tiny_bundle.voices.items()))
    voices = {**tiny_bundle.voices, name: Voice(voice.embeddings + 1, voice.cache)}
    delays = (*config.delays[:-1], 1 - config.delays[-1])
    for other, what in (
        (replace(tiny_bundle, config=replace(config, delays=delays)), "sizes"),
        (replace(tiny_bundle, config=replace(config, text_padding=0)), "sizes"),
        (replace(tiny_bundle, voices=voices), "voices"),
    ):
        with pytest.raises(ReportError, match=f"does not have its checkpoint's {what}"):
            validate(other, checkpoint)


@pytest.mark.parametrize("name", ["Ann", "Zoe"])
def test_added_and_removed_voices_are_not_a_difference(tiny_bundle: Bundle, name: str) -> None:
    """The recording is the first voice, or the last; a removed voice is only missing."""
    kept = {name: voice for name, voice in tiny_bundle.voices.items() if name != "NATM1"}
    voices = dict(sorted({**kept, name: np.ones((30, 8), np.int64)}.items()))
    assert list(_changed(replace(tiny_bundle, voices=voices), open_checkpoint(CHECKPOINT))) == []


def test_a_bundle_built_from_a_folder_needs_the_reference_option(tiny_bundle: Bundle) -> None:
    assert "Name it: --reference CHECKPOINT" in refusal(tiny_bundle.folder)


def test_the_manifest_names_the_repository_and_its_commit(tiny_bundle: Bundle) -> None:
    origin = {**tiny_bundle.manifest["checkpoint"], "repo": "someone/model", "revision": "0123"}
    bundle = replace(tiny_bundle, manifest={**tiny_bundle.manifest, "checkpoint": origin})
    assert reference_of(bundle, None) == reference_of(bundle, "someone/model") == ("someone/model", "0123")
    assert reference_of(bundle, "a/folder") == ("a/folder", None)


def test_recordings_replace_the_synthetic_user(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    shutil.copy(CHECKPOINT / "voices" / "synthetic.wav", tmp_path / "wavs")
    arguments = (tiny_bundle.folder, "--reference", CHECKPOINT, *SHORT, "--json", "--wavs")
    data = json.loads(run(*arguments, tmp_path / "wavs").stdout)
    assert data["passed"] and data["settings"]["recordings"].endswith("pieces of 1 files in wavs")
    assert "holds no recording" in refusal(*arguments, tmp_path / "nothing")


def test_an_unwritable_report_fails_before_the_work(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal(tiny_bundle.folder, "--reference", CHECKPOINT, "--report", tmp_path / "file")
    assert "Cannot create the folder" in said
    assert "Traceback" not in said


def test_recordings_of_an_earlier_report_are_removed(tiny_bundle: Bundle, done: Done, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "report"))
    (folder / "sounds" / "mine.wav").write_bytes(b"")
    assert run(tiny_bundle.folder, "--reference", CHECKPOINT, *SHORT, "--report", folder).exit_code == 0
    assert [path.name for path in (folder / "sounds").iterdir()] == ["mine.wav"]
    assert json.loads((folder / "report.json").read_text())["settings"]["sections"] == ["drift"]


def test_unusable_material_fails_before_the_work(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(tmp_path / "wavs" / "noise.wav", noise, 24_000)
    wavs = ("--wavs", tmp_path / "wavs", "--report", tmp_path / "report")
    said = refusal(tiny_bundle.folder, "--reference", CHECKPOINT, *wavs)
    assert "its 1 recordings" in said and "drift" not in said
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("arguments", [(), ("bundle", "--compare", "a", "b")])
def test_needs_either_a_bundle_or_two_reports(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and "Name a bundle to validate, or two reports" in result.stderr


@pytest.mark.parametrize("option", [("--only", "drift"), ("--tolerance", "drift.text_kl=0"), ("--frames", "64")])
def test_options_of_a_validation_do_not_fit_a_comparison(option: tuple[str, str]) -> None:
    result = run("--compare", "a", "b", *option)
    assert result.exit_code == 2 and "shows two finished reports" in result.stderr


def test_other_files_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert "not a validation report" in refusal("--compare", tmp_path, tmp_path)
    assert "Cannot read" in refusal("--compare", tmp_path / "nothing", tmp_path)
