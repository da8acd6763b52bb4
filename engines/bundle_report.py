"""The report of `inspect`: a bundle's engines, their layers and precisions, and the memory per session.

Called by `cli.engines`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pplex.engines.library import layers_path
from pplex.engines.mix_table import mix_table
from pplex.engines.plan import session_nbytes
from pplex.measure.tables import markdown, readable
from pplex.runtime.bundle import Bundle, open_bundle, origin_text, parity_text
from pplex.runtime.files import is_file, read_text
from pplex.runtime.gpus import ONNXRUNTIME
from pplex.runtime.precision import MIXED

Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class GraphReport:
    """One graph of a bundle. A value is None if the bundle does not record it.

    nbytes: size of its file with weights. session_nbytes: memory of one session.
    layers: number of layers by type and dtype. weights: bytes in the graph by dtype.
    held_nbytes: bytes of weights in the engine. scratch_nbytes: scratch memory of each profile.
    """

    graph: str
    kind: str
    gpu: str | None
    sm: int | None
    slots: int | None
    made_with: str
    precision: str
    nbytes: int
    session_nbytes: int
    layers: Counts | None
    weights: Mapping[str, int] | None
    held_nbytes: int | None
    scratch_nbytes: list[int] | None


@dataclass(frozen=True)
class BundleReport:
    """All graphs of a bundle, with rings of `capacity` steps; `kv_cache` is their dtype, a name in KV_CACHES.

    From the manifest: `checkpoint` is what the bundle was made from, `voices` are names, `parity` is the record of the
    validation, `choice` of what `--precision auto` or a mix chose for which target. `mix`: the table of a mix, or "".
    verified: the number of files whose SHA-256 was checked; None if none was.
    """

    capacity: int
    kv_cache: str
    graphs: tuple[GraphReport, ...]
    checkpoint: Mapping[str, Any]
    voices: list[str]
    parity: Mapping[str, Any] | None
    choice: Mapping[str, Any] | None
    mix: str = ""
    verified: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "mix"}  # `choice` has the forms

    def to_text(self) -> str:
        """A Markdown table of the graphs, then the layers of each."""
        sizes = ((report.nbytes, report.session_nbytes) for report in self.graphs)
        total = ("all", "", "", "", "", "", *(readable(sum(column)) for column in zip(*sizes, strict=True)))
        table = markdown(_HEADERS, [*(_row(report) for report in self.graphs), total])
        files = [f"verified: {self.verified} files, all as they were built"] if self.verified is not None else []
        layers = (_layers_text(report) for report in self.graphs)
        rings = f"rings of the temporal transformer: {self.kv_cache.replace('-', ' ')}"
        voices = f"voices: {', '.join(self.voices) or 'none'}"
        origin = f"made from {origin_text({'checkpoint': self.checkpoint})}\n{voices}\n{rings}"
        parts = (table, *files, origin, _choice_text(self.choice), self.mix, parity_text(self.parity), *layers)
        return "\n\n".join(part for part in parts if part)


_FACTS = ("layers", "weights", "held_nbytes", "scratch_nbytes")
_HEADERS = ("graph", "precision", "engine", "made with", "GPU", "slots", "file", "a session")


def report_bundle(folder: Path, verify: bool = False) -> BundleReport:
    """Report a bundle; with `verify`, check the SHA-256 of each file first.

    Raises BundleError if it is damaged or not a bundle, AccessError if unreadable.
    """
    bundle = open_bundle(folder, verify)
    capacity = bundle.config.temporal.capacity
    sessions = session_nbytes(bundle.config, bundle.precision, capacity)
    graphs = tuple(_graph(bundle, graph, nbytes) for graph, nbytes in sessions.items())
    verified = len(bundle.manifest["files"]) if verify else None
    recorded = {name: bundle.manifest[name] for name in ("checkpoint", "voices", "parity", "choice")}
    mix = mix_table(bundle.config, bundle.forms) if bundle.forms else ""
    return BundleReport(capacity, bundle.config.kv_cache, graphs, **recorded, mix=mix, verified=verified)


def _graph(bundle: Bundle, graph: str, session: int) -> GraphReport:
    entry = bundle.manifest["engines"][graph]
    facts = _of_onnx(bundle.graph_path(graph)) if entry["kind"] == ONNXRUNTIME else _of_engine(bundle.graph_path(graph))
    named = {name: entry[name] for name in ("kind", "gpu", "sm", "slots", "made_with")}
    nbytes = _nbytes(bundle, graph)
    return GraphReport(
        graph, **named, precision=bundle.precision[graph], nbytes=nbytes, session_nbytes=session, **facts
    )


def _nbytes(bundle: Bundle, graph: str) -> int:
    """Size of the engine's file, or of an ONNX graph with its NAME.data."""
    path = bundle.graph_path(graph)
    names = {path.name, path.with_suffix(".data").name} if path.suffix == ".onnx" else {path.name}
    return sum(bundle.manifest["files"][name]["nbytes"] for name in names & bundle.manifest["files"].keys())


def _of_engine(path: Path) -> dict[str, Any]:
    """The facts that the engine's build recorded: only its GPU can read the engine itself."""
    facts = json.loads(read_text(layers_path(path))) if is_file(layers_path(path)) else {}
    return {name: facts.get(name) for name in _FACTS}


def _of_onnx(path: Path) -> dict[str, Any]:
    """The nodes of the file, if onnx is installed. A machine that only runs bundles does not need onnx."""
    try:
        import onnx

        from pplex.engines.onnx_file import node_counts, weights_by_dtype
    except ModuleNotFoundError:
        return dict.fromkeys(_FACTS)
    model = onnx.load(path, load_external_data=False)
    return dict.fromkeys(_FACTS) | {"layers": node_counts(model), "weights": weights_by_dtype(model)}


def _choice_text(choice: Mapping[str, Any] | None) -> str:
    if choice is None:
        return "The precision was named by the user."
    needed = readable(choice["needed_nbytes"])
    if choice["by"] == MIXED.name:
        drift = ", ".join(f"{stream}={nats:.2g}" for stream, nats in choice["drift"].items())
        return f"The form of each matrix was chosen for {choice['target']}: {needed}. Predicted drift: {drift} nats."
    memory = readable(choice["memory_nbytes"])
    return f"--precision auto chose {choice['precision']} for {choice['target']}: {needed} of {memory}."


def _row(report: GraphReport) -> tuple[str, ...]:
    gpu = f"{report.gpu} (sm_{report.sm})" if report.gpu else "any"
    sizes = readable(report.nbytes), readable(report.session_nbytes)
    return (report.graph, report.precision, report.kind, report.made_with, gpu, str(report.slots or "any"), *sizes)


def _layers_text(report: GraphReport) -> str:
    if report.layers is None or report.weights is None:
        return f"{report.graph}: layers unknown (for ONNX graphs: pip install 'pplex-export[export]')"
    what = "nodes of the graph" if report.kind == ONNXRUNTIME else "layers before the builder fuses them"
    counts = (f"{name} {dtype} {count}" for name, types in report.layers.items() for dtype, count in types.items())
    weights = ", ".join(f"{dtype} {readable(nbytes)}" for dtype, nbytes in report.weights.items())
    scratch = "".join(f"; scratch of profile {i} {readable(n)}" for i, n in enumerate(report.scratch_nbytes or ()))
    held = f", {readable(report.held_nbytes)} in the engine" if report.held_nbytes is not None else ""
    return f"{report.graph}: weights {weights}{held}{scratch}\n  {what}: {', '.join(counts)}"
