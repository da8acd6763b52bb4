"""Shared fixtures: golden folders, and a bundle built once from each."""

import fcntl
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from folders import GOLDEN, MOSHI, TINY, TRAINED

from pplex.export.build import BuildOptions, build
from pplex.export.source import CheckpointSource
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.config import INT8, LIKE_ACTIVATIONS
from pplex.runtime.precision import parse_precision
from pplex.runtime.voice_changes import change_voices

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ROOMY = 512  # steps of the ring of `roomy_bundle`
KEPT = "PPLEX_TEST_BUNDLES"  # a folder that keeps bundles for the next run; `make check` sets it
SLOW = (  # `make check` skips these files, and tests marked slow; the slowest file is first
    "export/test_precision.py", "test_readme.py", "export/test_build.py", "validate/test_validation.py",
    "engines/test_compile.py", "validate/test_short.py", "export/test_other_sizes.py",
    "validate/sections/test_graphs.py", "runtime/test_stages.py", "runtime/test_ort_cuda.py",
    "runtime/test_prepared.py", "cli/test_cli.py", "cli/test_build_layouts.py", "validate/sections/test_window.py",
    "bench/test_soak.py",
    "validate/sections/test_streaming.py", "validate/test_reference.py", "validate/sections/test_codec.py",
    "export/test_synth.py", "validate/sections/test_conversation.py", "validate/report/test_plots.py",
    "bench/test_floor.py", "benchmarks/test_gpu.py", "export/test_awq.py", "export/test_calibration.py",
    "validate/test_drift.py", "export/test_sensitivity.py",
    "export/test_mixed.py", "export/test_source.py", "validate/sections/test_sampling.py", "bench/test_priming.py",
    "bench/test_torch_backend.py", "validate/speech/test_scenarios.py", "engines/test_bundle_report.py",
    "validate/test_trained.py", "validate/test_surprise.py",
    "test_skips.py", "validate/test_recording.py", "bench/test_load.py", "bench/test_sweep.py", "cli/test_quiet.py",
    "cli/test_doctor.py", "bench/test_parting.py", "validate/report/test_html.py", "server/test_client.py",
    "server/test_hostile.py", "server/test_hostile_connections.py", "server/test_load.py",
    "server/page/test_refusals.py", "server/page/test_trouble.py", "server/page/test_connection.py",
    "server/page/test_appearance.py", "server/page/test_conversation.py", "server/page/test_audio.py",
    "server/page/test_messages.py", "server/test_access.py", "server/test_tokens.py", "server/test_pages.py",
    "server/test_wild_clients.py", "server/test_options.py", "server/test_sockets.py", "cli/test_unreadable.py",
    "runtime/test_libraries.py", "doctor/test_checkpoint.py", "doctor/test_engines.py", "doctor/test_bundle.py",
    "server/test_conversation.py", "server/test_limits.py", "server/test_queue.py", "server/test_resume.py",
    "server/test_start_and_end.py", "server/test_metrics.py", "server/test_recording.py", "server/test_real_clients.py",
    "server/test_proxies.py", "server/test_voices.py", "cli/test_voices.py", "cli/test_download.py", "cli/test_push.py",
    "cli/test_read_only.py", "fleet/test_simulation.py", "server/test_fleet.py", "deploy/test_image.py",
    "deploy/test_pod.py", "deploy/test_dashboard.py", "server/test_tracing.py", "server/test_logs.py",
    "scale/test_replicas.py", "scale/test_changes.py", "scale/test_scale.py", "server/test_control.py",
    "server/test_control_hostile.py", "server/test_permission.py", "server/test_client_orders.py",
    "server/page/test_control.py", "server/page/test_control_appearance.py", "server/test_live.py",
    "server/test_live_clients.py", "server/test_realtime.py", "server/test_realtime_clients.py",
    "server/test_agents.py", "server/test_agents_ends.py", "server/test_openai_ends.py", "scale/test_page.py",
    "server/test_all_protocols.py",
    "server/test_twilio.py", "server/test_twilio_clients.py", "server/test_twilio_hostile.py",
    "server/test_transcribe.py", "server/test_transcriber.py", "fdb/test_similarity.py", "fdb/test_resemblyzer.py",
    "export/test_int8_rings.py", "runtime/test_kernel_graph.py",
)  # fmt: skip

# Small convolutions on several threads mostly wait for each other, above all on a busy machine.
torch.set_num_threads(1)


# Run before pytest selects by markers.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow files and run them first: test processes then end at about the same time."""
    rank = {TESTS / name: place for place, name in enumerate(SLOW)}
    for item in items:
        if item.path in rank:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def on_the_processor() -> Iterator[None]:
    """Tests get a GPU only if they ask for it: most tests read the host's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplex.runtime.backend.has_cuda_provider", lambda: False)
        yield


def made_of() -> str:
    """A hash of the inputs of a bundle: our code, the checkpoints, the versions of packages."""
    code = (path for package in ("export", "engines", "runtime", "validate") for path in (ROOT / package).rglob("*.py"))
    checkpoint = (path for path in GOLDEN.glob("*/checkpoint/**/*") if path.is_file())
    found = hashlib.sha256()
    for path in sorted((*code, *checkpoint, *(ROOT / "requirements").iterdir())):
        found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Builds the bundle of a golden checkpoint in a precision, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    kept = Path(os.environ[KEPT]) / made_of() if os.environ.get(KEPT) else shared / "bundles"

    @cache
    def make(
        golden: Path, precision: str = "fp32", for_engines: bool = False, kv_cache: str = LIKE_ACTIVATIONS
    ) -> Bundle:
        rings = "" if kv_cache == LIKE_ACTIVATIONS else f"-rings-{kv_cache}"
        name = f"{golden.name}-{precision}{'-for-engines' if for_engines else ''}{rings}"
        out = (kept if golden.parent == GOLDEN else shared / "bundles") / name
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_name(f"{out.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                options = BuildOptions(precision=parse_precision(precision), for_engines=for_engines, kv_cache=kv_cache)
                build(CheckpointSource(golden / "checkpoint", None, None), out, options)
        return open_bundle(out)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(bundle_of: Callable[..., Bundle]) -> Bundle:
    """The bundle of tests/golden/tiny; read only."""
    return bundle_of(TINY)


@pytest.fixture(scope="session")
def int8_rings_bundle(bundle_of: Callable[..., Bundle]) -> Bundle:
    """The tiny bundle in float32 with rings in int8; read only."""
    return bundle_of(TINY, kv_cache=INT8)


@pytest.fixture(scope="session")
def roomy_bundle(bundle_of: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a ring of ROOMY steps instead of 96, so that a long history fits behind a prompt; read only."""
    base = tmp_path_factory.getbasetemp()
    golden = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "roomy"
    fresh = tmp_path_factory.mktemp("roomy")
    shutil.copytree(TINY / "checkpoint", fresh / "checkpoint")
    config = fresh / "checkpoint" / "config.json"
    config.write_text(config.read_text().replace('"context": 96', f'"context": {ROOMY}'))
    with suppress(OSError):  # another test process has made it
        fresh.rename(golden)
    return bundle_of(golden)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoint`, the trained small model; read only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    fresh = tmp_path_factory.mktemp("trained")
    with tarfile.open(TRAINED / "checkpoint.tar.xz") as archive:
        archive.extractall(fresh, filter="data")
    with suppress(OSError):  # another test process has made it
        fresh.rename(folder)
    return folder


@pytest.fixture(scope="session")
def moshi_bundle(bundle_of: Callable[..., Bundle]) -> Bundle:
    """The bundle of tests/golden/moshi, a Moshi model: without voices and without a prompt; read only."""
    return bundle_of(MOSHI)


@pytest.fixture(scope="session")
def voiceless_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle, a PersonaPlex model, without its voices; read only."""
    folder = tmp_path_factory.mktemp("voiceless") / "bundle"
    folder.mkdir()
    for path in tiny_bundle.folder.iterdir():
        (folder / path.name).symlink_to(path)
    change_voices(folder, lambda voices: type(voices)({}, {}))
    return open_bundle(folder)


@pytest.fixture(scope="session")
def engine_bundle(bundle_of: Callable[..., Bundle]) -> Bundle:
    """The same in the graphs from which engines are compiled; read only."""
    return bundle_of(TINY, for_engines=True)
