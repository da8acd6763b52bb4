"""A bundle's report: from its ONNX graphs, or from the build record of its engines."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pplex.engines.bundle_report import report_bundle
from pplex.engines.compile import compile_engine, engine_entry
from pplex.engines.plan import session_nbytes
from pplex.runtime.backend import engines_nbytes
from pplex.runtime.bundle import MANIFEST_FILE, Bundle, file_sha256, manifest_digest, open_bundle
from pplex.runtime.errors import BundleError
from pplex.runtime.gpus import parse_gpu
from pplex.runtime.pipeline import GRAPH_NAMES


@pytest.fixture(scope="module")
def engine_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a compiled decoder."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path_factory.mktemp("reports") / "bundle"))
    manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text())
    spec, graph = tiny_bundle.specs["mimi_decode"], tiny_bundle.graph_path("mimi_decode")
    engine, gpu = folder / "mimi_decode.engine", parse_gpu("rtx-4090")
    compile_engine(graph, spec, 96, gpu, 4, engine)
    manifest["engines"]["mimi_decode"] = engine_entry(engine, gpu, 4)
    for path in folder.glob("mimi_decode.*"):
        manifest["files"][path.name] = {"nbytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return open_bundle(folder)


def test_graphs_are_read_from_their_files(tiny_bundle: Bundle) -> None:
    report = report_bundle(tiny_bundle.folder)
    assert [graph.graph for graph in report.graphs] == list(GRAPH_NAMES) and report.capacity == 96
    temporal = report.graphs[1]
    assert (temporal.kind, temporal.gpu, temporal.slots, temporal.precision) == ("onnxruntime", None, None, "fp32")
    assert temporal.layers is not None and temporal.layers["TensorScatter"] == {"FLOAT": 6}
    files = tiny_bundle.manifest["files"]
    assert temporal.nbytes == files["temporal.onnx"]["nbytes"] + files["temporal.data"]["nbytes"]
    sessions = session_nbytes(tiny_bundle.config, tiny_bundle.precision, 96)
    assert {graph.graph: graph.session_nbytes for graph in report.graphs} == sessions


def test_engines_are_reported_from_their_build_record(engine_bundle: Bundle) -> None:
    decode = report_bundle(engine_bundle.folder).graphs[3]
    assert (decode.kind, decode.gpu, decode.sm, decode.slots) == ("tensorrt-rtx", "rtx-4090", 89, 4)
    assert decode.layers is not None and decode.layers["KV_CACHE_UPDATE"] == {"FLOAT": 4}
    assert decode.scratch_nbytes is not None and len(decode.scratch_nbytes) == 3  # any batch, 2 slots, 4 slots
    assert decode.nbytes == engine_bundle.path("mimi_decode.engine").stat().st_size
    assert engines_nbytes(engine_bundle.manifest) == sum(
        graph.nbytes for graph in report_bundle(engine_bundle.folder).graphs
    )


def test_text_has_one_row_per_graph_and_its_layers(engine_bundle: Bundle) -> None:
    text = report_bundle(engine_bundle.folder).to_text()
    assert "| mimi_decode | fp32      | tensorrt-rtx | tensorrt-rtx 1." in text and "rtx-4090 (sm_89)" in text
    assert "layers before the builder fuses them: ACTIVATION FLOAT" in text
    assert "nodes of the graph: Add FLOAT" in text and "scratch of profile 0" in text


def test_without_onnx_the_rest_is_reported(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = report_bundle(tiny_bundle.folder)
    assert report.graphs[0].layers is None and report.graphs[0].nbytes > 0
    assert "mimi_encode: layers unknown (for ONNX graphs: pip install" in report.to_text()


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        report_bundle(tmp_path)
