"""Copies a graph's ONNX file and makes its layers additional outputs: called by the graphs section.

Layers are found by the names of their weights, which are the names in the torch modules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from pplex.runtime.bundle import Bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.gpus import ONNXRUNTIME
from pplex.runtime.graphs import GraphSpec, TensorSpec
from pplex.runtime.pipeline import GRAPH_NAMES

PROBE = "probe:"
CODEBOOK = "quantizer.codebooks."
Points = list[tuple[str, ir.Value]]


@dataclass(frozen=True)
class RewrittenBundle(Bundle):
    """A bundle with some graphs replaced by files in another folder, which use the bundle's weights.

    `probes`: additional outputs of the graphs, named PROBE + the layer's name, [B, ...] float32.
    """

    rewritten: Mapping[str, Path]
    probes: Mapping[str, tuple[TensorSpec, ...]]  # by graph, in the order of computation

    @classmethod
    def of(
        cls, bundle: Bundle, rewritten: Mapping[str, Path], probes: Mapping[str, tuple[TensorSpec, ...]] | None = None
    ) -> "RewrittenBundle":
        return cls(
            bundle.folder, bundle.manifest, bundle.config, bundle.precision, bundle.voices, rewritten, probes or {}
        )

    @property
    def specs(self) -> dict[str, GraphSpec]:
        return {
            name: replace(spec, outputs=spec.outputs + self.probes.get(name, ()))
            for name, spec in super().specs.items()
        }

    def graph_path(self, graph: str, on_processor: bool = False) -> Path:
        return self.rewritten.get(graph) or super().graph_path(graph, on_processor)


def can_be_probed(bundle: Bundle) -> bool:
    """Whether the bundle has ONNX graphs; compiled engines give only their outputs."""
    return all(entry["kind"] == ONNXRUNTIME for entry in bundle.manifest["engines"].values())


def probe(bundle: Bundle, scratch: Path, on_processor: bool) -> RewrittenBundle:
    """The bundle with all layers of its graphs as outputs; the changed graph files are in `scratch`.

    `on_processor`: the forms of the graphs for processors.
    """
    probes, rewritten = {}, {}
    for graph in GRAPH_NAMES:
        model = ir.load(bundle.graph_path(graph, on_processor))
        points = list(_POINTS[graph](model.graph, bundle.config))
        probes[graph] = tuple(_expose(model.graph, name, value) for name, value in points)
        rewritten[graph] = scratch / f"{graph}.probed.onnx"
        ir.save(model, rewritten[graph])
    return RewrittenBundle.of(bundle, rewritten, probes)


def _expose(graph: ir.Graph, name: str, value: ir.Value) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape or ())
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
    output = cast.outputs[0]
    output.name, output.shape, output.type = PROBE + name, value.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.append(cast)
    graph.outputs.append(output)
    return TensorSpec(PROBE + name, "float32", shape)


def _meets(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """The nodes that use each weight, also through DequantizeLinear or Cast: name -> nodes in order."""
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        for value in node.inputs:
            weight = _weight(value)
            if weight is not None and node.op_type not in ("DequantizeLinear", "Cast"):
                found.setdefault(weight, []).append(node)
    return found


def _weight(value: ir.Value | None) -> str | None:
    """The name of the weight behind a value, through DequantizeLinear and Cast."""
    while value is not None and not value.is_initializer():
        maker = value.producer()
        if maker is None or maker.op_type not in ("DequantizeLinear", "Cast"):
            return None
        value = maker.inputs[0]
    return None if value is None else str(value.name).removesuffix(".values")


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _temporal(graph: ir.Graph, config: ModelConfig) -> Iterator[tuple[str, ir.Value]]:
    """The residual stream between half layers: the input of each norm."""
    meets, last = _meets(graph), config.temporal.layers - 1
    yield "embedding", _input(meets["layers.0.norm1.weight"][0])
    for i in range(last + 1):
        yield f"layers.{i}.attention", _input(meets[f"layers.{i}.norm2.weight"][0])
        after = "out_norm.weight" if i == last else f"layers.{i + 1}.norm1.weight"
        yield f"layers.{i}.gating", _input(meets[after][0])


def _depth(graph: ir.Graph, config: ModelConfig) -> Iterator[tuple[str, ir.Value]]:
    """Like `_temporal`, for each step. Steps share the norms, and no norm precedes the head."""
    meets, last = _meets(graph), config.depth.layers - 1
    for k in range(config.depth_steps):
        yield f"steps.{k}.input", _input(meets["norm1.0.weight"][k])
        for i in range(last + 1):
            yield f"steps.{k}.layers.{i}.attention", _input(meets[f"norm2.{i}.weight"][k])
            head = meets[f"steps.{k}.output.weight"][0]
            yield f"steps.{k}.layers.{i}.gating", _input(head if i == last else meets[f"norm1.{i + 1}.weight"][k])


def _codec(graph: ir.Graph, config: ModelConfig) -> Iterator[tuple[str, ir.Value]]:
    """The output of every convolution, matrix and table of the codec."""
    done = set()
    for node in graph:
        for weight in filter(None, map(_weight, node.inputs)):
            filters = node.op_type in ("Conv", "ConvTranspose", "MatMul") and weight.endswith(".weight")
            table = node.op_type == "Gather" and weight.startswith(CODEBOOK)
            if weight not in done and (filters or table):
                done.add(weight)
                yield weight.removesuffix(".weight"), node.outputs[0]


_POINTS = {"mimi_encode": _codec, "temporal": _temporal, "depth": _depth, "mimi_decode": _codec}
