"""Building a bundle: complete or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapters import RANK, matrices, write_adapter
from folders import MOSHI as GOLDEN_MOSHI
from folders import TINY
from layouts import copied, halved, rename_lm, shard, weights_of

from pplex.export.build import BuildOptions, _find_voices, _identity, build
from pplex.export.build_plan import plan_build
from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, VOICES_FILE, open_checkpoint
from pplex.export.layout import INDEX_FILE, VOICES_FOLDER
from pplex.export.source import CheckpointSource
from pplex.export.staging import partial_folder
from pplex.runtime.bundle import STEPS_FILE, Bundle, is_bundle, open_bundle
from pplex.runtime.config import MOSHI
from pplex.runtime.errors import BuildError, CheckpointError, ConfigError, EngineError, GpuError, OutputError
from pplex.runtime.gpus import Gpu, parse_gpu
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import parse_precision
from pplex.runtime.session import Runtime


def source(folder: Path) -> CheckpointSource:
    return CheckpointSource(folder, None, None)


def start_build(checkpoint: Path, out: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A build in its own process, and its staging folder after the first graph is written."""
    code = "from pplex.cli import main; main()"
    command = [sys.executable, "-c", code, "build", str(checkpoint), "--precision", "fp32", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    staging, deadline = partial_folder(out), time.monotonic() + 120
    while time.monotonic() < deadline:
        if (staging / STEPS_FILE).exists() and "mimi_encode" in (staging / STEPS_FILE).read_text():
            return process, staging
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.kill()
    raise AssertionError("the build wrote no graph in two minutes")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_build_keeps_the_old_bundle_and_resumes(
    tiny_bundle: Bundle, tmp_path: Path, stop: signal.Signals
) -> None:
    out = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    process, staging = start_build(TINY / "checkpoint", out)
    with pytest.raises(OutputError, match="another process"):
        build(source(TINY / "checkpoint"), out)
    process.send_signal(stop)
    _, errors = process.communicate()
    assert b"Traceback" not in errors and (stop == signal.SIGKILL or str(staging).encode() in errors)
    assert open_bundle(out).manifest == tiny_bundle.manifest
    written: list[str] = []
    build(source(TINY / "checkpoint"), out, progress=lambda stage, done, _: written.append(stage) if done else None)
    assert "mimi_encode" not in written and "mimi_decode" in written
    assert open_bundle(out).manifest == tiny_bundle.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_build_resumes_only_with_the_same_inputs(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY / "checkpoint", tmp_path / "checkpoint"))
    recordings = tmp_path / "recordings"
    recordings.mkdir()

    def identity(**options: Any) -> str:
        return _identity(plan_build(open_checkpoint(folder), BuildOptions(**options)))

    int4 = parse_precision("int4")
    first, calibrated = identity(), identity(precision=int4, calibration=recordings)
    assert identity() == first
    assert len({first, calibrated, identity(capacity=64), identity(precision=int4), identity(slots=2)}) == 5
    (recordings / "more.wav").touch()
    assert identity(precision=int4, calibration=recordings) != calibrated
    config = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text(config.replace('"context": 96', '"context": 64'))
    assert identity() != first
    (folder / CONFIG_FILE).write_text(config)
    os.utime(folder / LM_FILE, (1, 1))
    assert identity() != first


def test_a_build_resumes_only_with_the_same_adapter_shards_and_voices(tmp_path: Path) -> None:
    folder, adapter = copied(tmp_path / "checkpoint"), tmp_path / "lora.safetensors"
    shapes = {"text_linear.lora_A.weight": (RANK, 32), "text_linear.lora_B.weight": (400, RANK)}
    shard(folder)
    write_adapter(adapter, matrices(shapes), {"lora_scaling": 2.0})

    def identity() -> str:
        return _identity(plan_build(open_checkpoint(folder, adapter), BuildOptions(lora=adapter)))

    known = {identity()}
    adapter.with_name(CONFIG_FILE).write_text('{"lora_scaling": 1.0}')  # the adapter's file is the same
    known.add(identity())
    for path in (adapter, folder / "model-00002-of-00003.safetensors", folder / INDEX_FILE, folder / VOICES_FILE):
        os.utime(path, (1, 1))
        known.add(identity())
    shutil.copyfile(next((folder / VOICES_FOLDER).glob("*.pt")), folder / VOICES_FOLDER / "Another.pt")
    known.add(identity())
    assert len(known) == 7 and identity() in known


def test_a_truncated_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    broken = Path(shutil.copytree(TINY / "checkpoint", tmp_path / "checkpoint"))
    os.truncate(broken / LM_FILE, 1_000_000)
    with pytest.raises(CheckpointError, match="damaged"):
        build(source(broken), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_is_not_a_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="not a bundle"):
        build(source(TINY / "checkpoint"), tmp_path)
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(BuildError, match="not a bundle"):
        build(source(TINY / "checkpoint"), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_bundle_with_a_foreign_file_is_not_overwritten(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    assert is_bundle(out)
    (out / "notes.txt").touch()
    with pytest.raises(BuildError, match="not a bundle"):
        build(source(TINY / "checkpoint"), out)


def test_the_manifest_records_the_origin_of_the_bundle(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest["checkpoint"]["files"][LM_FILE]
    assert manifest["precision"] == dict.fromkeys(("mimi_encode", "temporal", "depth", "mimi_decode"), "fp32")
    assert set(manifest["files"]) == {path.name for path in tiny_bundle.folder.iterdir()} - {"manifest.json"}
    assert tuple(tiny_bundle.voices) == ("NATF0", "NATM1", "VARF2")


@pytest.mark.parametrize("capacity", [31, 97])
def test_a_capacity_out_of_range_is_refused(tmp_path: Path, capacity: int) -> None:
    with pytest.raises(ConfigError, match=r"32 to 96"):
        build(source(TINY / "checkpoint"), tmp_path / "bundle", BuildOptions(capacity=capacity))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["moshi", "personaplex"])
def test_depth_steps_that_the_checkpoint_lacks_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    folder = GOLDEN_MOSHI / "checkpoint"
    if kind == "personaplex":
        folder = copied(tmp_path / "checkpoint")
        rename_lm(folder, LM_FILE, halved(weights_of(folder)))
    with pytest.raises(CheckpointError, match=r"lacks depformer_emb\.7\.weight\.\nLeave --depth-steps out"):
        build(source(folder), tmp_path / "bundle", BuildOptions(depth_steps=16))
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint"}


@pytest.mark.parametrize("place", [VOICES_FILE, VOICES_FOLDER])
def test_voices_of_a_moshi_model_are_left_out(tmp_path: Path, place: str) -> None:
    folder, told = copied(tmp_path / "checkpoint"), list[str]()
    (folder / CONFIG_FILE).write_text(
        json.dumps({**json.loads((folder / CONFIG_FILE).read_text()), "model_type": MOSHI})
    )
    shutil.rmtree(folder / VOICES_FOLDER) if place == VOICES_FILE else (folder / VOICES_FILE).unlink()
    plan = plan_build(open_checkpoint(folder), BuildOptions())
    assert not plan.config.takes_prompt and _find_voices(plan, told.append) == {}
    assert told == ["Its voices are left out: a Moshi model takes none."]


RTX_4090 = parse_gpu("rtx-4090")


def test_a_bundle_for_a_gpu_holds_engines_only(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")
    messages: list[str] = []
    options = BuildOptions(gpu=RTX_4090, slots=2)
    bundle = open_bundle(build(source(TINY / "checkpoint"), tmp_path / "bundle", options, tell=messages.append))
    assert "slots at 96 steps" in messages[0]
    assert {path.suffix for path in bundle.folder.iterdir()} == {".engine", ".json", ".model", ".safetensors"}
    for name in GRAPH_NAMES:
        entry = bundle.manifest["engines"][name]
        assert (entry["kind"], entry["sm"], entry["slots"]) == ("tensorrt-rtx", 89, 2)
    with pytest.raises(EngineError):  # no GPU, or another model
        Runtime(bundle, slots=4)


@pytest.mark.parametrize(
    "gpu, precision, words",
    [
        (replace(RTX_4090, memory_nbytes=1_510_000_000), "fp32", "slots of .*, not 8"),
        (parse_gpu("rtx-3090"), "fp8", "rtx-3090|RTX 3090 .*cannot run temporal=fp8"),
        (parse_gpu("h100"), "fp8", "H100"),
    ],
)
def test_a_build_that_does_not_fit_the_gpu_fails_at_once(tmp_path: Path, gpu: Gpu, precision: str, words: str) -> None:
    options = BuildOptions(gpu=gpu, precision=parse_precision(precision))
    with pytest.raises((GpuError, BuildError), match=words):
        build(source(TINY / "checkpoint"), tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_a_build_that_does_not_fit_the_disk_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
    with pytest.raises(BuildError, match=r"needs 0\.0 GB and .* has 0\.0 GB free"):
        build(source(TINY / "checkpoint"), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
