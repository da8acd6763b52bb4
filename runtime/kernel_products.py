"""Gives our product what surrounds it in a graph: RMSNorm or SwiGLU's gate before it, an addition after it.

    x -> RMSNormalization -> MatMulPacked -> y                                x, norm -> MatMulPacked -> y
    x -> Split -> a, b     a -> QuickGelu, times b -> MatMulPacked -> y       x -> MatMulPacked (gated) -> y
    x -> MatMulPacked, plus r -> y                                            x, r -> MatMulPacked -> y

Called by `runtime.kernel_graph`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pplex.kernels import PRODUCT
from pplex.runtime.onnx_fields import FLOAT32, Node, Tensor, our_node, without_unused

_ABSORBED = ("RMSNormalization", "Split", "QuickGelu", "Mul")  # operators that may become unused


@dataclass(frozen=True)
class _Source:
    """What a product reads: x, and an RMSNorm's weights with its epsilon, or whether x is gated."""

    x: str
    norm: str = ""
    epsilon: float = 0.0
    gated: bool = False


def with_surroundings(nodes: Sequence[Node], outputs: Sequence[str], constants: Mapping[str, Tensor]) -> list[Node]:
    """The nodes of a graph whose products do what surrounds them. `outputs`: names of the graph's outputs."""
    return _Graph(nodes, outputs, constants).rewritten()


class _Graph:
    def __init__(self, nodes: Sequence[Node], outputs: Sequence[str], constants: Mapping[str, Tensor]):
        self._nodes, self._outputs, self._constants = nodes, outputs, constants
        self._maker = {name: node for node in nodes for name in node.outputs}
        self._users: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            for name in node.inputs:
                self._users[name].append(node)

    def rewritten(self) -> list[Node]:
        ours, gone = dict[int, Node](), set[int]()
        for node in (node for node in self._nodes if node.kind == PRODUCT):
            source, addition = self._source(node), self._addition(node)
            added = next((name for name in addition.inputs if name != node.outputs[0]), "") if addition else ""
            # It stands where the addition stood, when all inputs are known.
            ours[id(addition or node)] = _product(addition or node, node, source, added)
            if addition:
                gone.add(id(node))
        kept = [ours.get(id(node), node) for node in self._nodes if id(node) not in gone]
        return without_unused(kept, _ABSORBED, self._outputs)

    def _source(self, product: Node) -> _Source:
        name = product.inputs[0]
        maker = self._maker.get(name)
        if maker is None or name in self._outputs or any(user.kind != PRODUCT for user in self._users[name]):
            return _Source(name)
        return self._normed(maker, product) or self._gated(maker) or _Source(name)

    def _normed(self, maker: Node, product: Node) -> _Source | None:
        weight = self._constants.get(maker.inputs[1]) if maker.kind == "RMSNormalization" else None
        if weight is None or maker.attributes.get("axis", -1) != -1:
            return None
        if weight.dtype != FLOAT32 or weight.shape != (product.attributes["K"],):
            return None
        return _Source(maker.inputs[0], maker.inputs[1], maker.floats.get("epsilon", 1e-5))

    def _gated(self, maker: Node) -> _Source | None:
        if maker.kind != "Mul":
            return None
        for gate, value in (maker.inputs, maker.inputs[::-1]):
            gelu, split = self._maker.get(gate), self._maker.get(value)
            silu = gelu is not None and gelu.kind == "QuickGelu" and gelu.floats.get("alpha") == 1
            if gelu and silu and split and _splits_in_two(split) and split.outputs == (gelu.inputs[0], value):
                return _Source(split.inputs[0], gated=True)
        return None

    def _addition(self, product: Node) -> Node | None:
        """The addition that alone uses a product, to something else that is computed."""
        name = product.outputs[0]
        users = self._users[name]
        if len(users) != 1 or users[0].kind != "Add" or name in self._outputs:
            return None
        others = [one for one in users[0].inputs if one != name]
        return users[0] if len(others) == 1 and others[0] in self._maker else None


def _splits_in_two(node: Node) -> bool:
    """Whether a node splits the last of three axes into two halves."""
    is_last = node.attributes.get("axis") in (2, -1)
    return node.kind == "Split" and is_last and len(node.inputs) == 1 and len(node.outputs) == 2


def _product(place: Node, product: Node, source: _Source, added: str) -> Node:
    """The product, with the name and outputs of the node `place`."""
    inputs = [source.x, product.inputs[1], source.norm, added]
    while not inputs[-1]:
        inputs.pop()
    integers = {**product.attributes, "gated": int(source.gated)}
    return our_node(place, PRODUCT, inputs, integers, {"epsilon": source.epsilon})
