"""Replaces attentions in an optimised graph by those of our kernels. Called by `runtime.kernel_graph`.

Temporal transformer, rings in float16:

    q, k, v, ..., lengths -> Attention     -> y
    q, k, v, lengths      -> RingAttention -> y

Depth transformer, where a step's keys and values follow those of the steps before:

    x -> Cast -> Split -> q, k, v        k's of all steps -> Concat -> k      v's of all steps -> Concat -> v
    q, k, v -> Attention -> Cast -> y
    x's of all steps -> StepAttention -> y
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from pplex.kernels import RINGS, STEPS, WIDTHS
from pplex.runtime.onnx_fields import FLOAT16, FLOAT32, Node, our_node, without_unused

Types = Mapping[str, tuple[int, tuple[int, ...]]]  # of a graph's outputs: type and shape

_LENGTHS = 6  # input of ONNX's Attention; inputs 3 to 5 are a mask and other rings
_SPLITTING = ("Cast", "Split", "Concat")  # operators whose results may become unused


def with_our_attention(nodes: Sequence[Node], outputs: Types) -> list[Node]:
    """The nodes of a graph with our attentions wherever they compute the same."""
    replaced = [_reading_rings(node) if _reads_rings(node, outputs) else node for node in nodes]
    return _Steps(replaced).replaced(outputs)


def _reads_rings(node: Node, outputs: Types) -> bool:
    """Whether a node is causal attention, with a length for each slot, to rings that are outputs of the graph in float16."""
    if node.kind != "Attention" or len(node.inputs) != _LENGTHS + 1 or any(node.inputs[3:_LENGTHS]):
        return False
    rings = [outputs.get(name, (0, (0,))) for name in node.inputs[1:3]]
    plain = node.attributes.get("is_causal") == 1 and not any(node.floats.values())
    return plain and all(dtype == FLOAT16 and shape[-1] in WIDTHS for dtype, shape in rings)


def _reading_rings(node: Node) -> Node:
    return our_node(node, RINGS, (*node.inputs[:3], node.inputs[_LENGTHS]), {})


class _Steps:
    """Finds attentions of a step to all steps."""

    def __init__(self, nodes: Sequence[Node]):
        self._nodes = nodes
        self._maker = {name: node for node in nodes for name in node.outputs}
        self._users = Counter(name for node in nodes for name in node.inputs)
        self._user = {name: node for node in nodes for name in node.inputs}

    def replaced(self, outputs: Types) -> list[Node]:
        """The nodes with StepAttention. `outputs`: of the graph; they are kept."""
        ours, gone = dict[int, Node](), set[int]()
        for node in self._nodes:
            cast = self._user.get(node.outputs[0]) if self._is_plain(node, outputs) else None
            steps = self._steps(node) if cast and _casts(cast, FLOAT32) else None
            if cast and steps:
                ours[id(cast)] = our_node(cast, STEPS, steps, {"heads": node.attributes["q_num_heads"]})
                gone.add(id(node))
        kept = [ours.get(id(node), node) for node in self._nodes if id(node) not in gone]
        return without_unused(kept, _SPLITTING, outputs) if ours else kept

    def _is_plain(self, node: Node, outputs: Types) -> bool:
        """Whether a node attends to everything, for one operator only."""
        if node.kind != "Attention" or len(node.inputs) != 3 or any(node.floats.values()):
            return False
        heads, alone = node.attributes.get("q_num_heads", 0), self._users[node.outputs[0]] == 1
        same = heads == node.attributes.get("kv_num_heads") and not node.attributes.get("is_causal")
        return heads > 0 and same and alone and node.outputs[0] not in outputs

    def _steps(self, node: Node) -> tuple[str, ...] | None:
        """The steps' tensors that an attention reads, in float32, the newest last; None if it reads anything else."""
        query, keys, values = (self._parts(name) for name in node.inputs)
        sources = tuple(source for source, _ in keys)
        expected = [(query[-1:], 0), (keys, 1), (values, 2)] if query else []
        right = all(part == place for parts, place in expected for _, part in parts)
        same = sources == tuple(source for source, _ in values) and [source for source, _ in query] == list(
            sources[-1:]
        )
        return sources if sources and right and same else None

    def _parts(self, name: str) -> list[tuple[str, int]]:
        """What a tensor is made of: parts of steps in order, each with its step's tensor and its place there."""
        maker = self._maker.get(name)
        if maker and maker.kind == "Concat" and maker.attributes.get("axis") in (1, -2):
            parts = [self._parts(one) for one in maker.inputs]
            return [part for of_one in parts for part in of_one] if all(parts) else []
        cast = self._maker.get(maker.inputs[0]) if maker and _splits_in_three(maker) else None
        return [(cast.inputs[0], maker.outputs.index(name))] if maker and cast and _casts(cast, FLOAT16) else []


def _splits_in_three(node: Node) -> bool:
    """Whether a node splits the last of three axes into three equal parts."""
    is_last = node.attributes.get("axis") in (2, -1)
    return node.kind == "Split" and is_last and len(node.inputs) == 1 and len(node.outputs) == 3


def _casts(node: Node, dtype: int) -> bool:
    return node.kind == "Cast" and node.attributes.get("to") == dtype
