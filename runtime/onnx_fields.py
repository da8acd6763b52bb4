"""The fields of ONNX models that `runtime.kernel_graph` reads and writes. The runtime does not need the package onnx.

Source of the numbers: onnx.proto, github.com/onnx/onnx.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pplex.kernels import DOMAIN
from pplex.runtime.protobuf import BYTES, FIXED32, VARINT, Field, fields, integer, message, nested, text

FLOAT32, UINT8, FLOAT16 = 1, 2, 10  # of TensorProto.DataType
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_INPUT, _OUTPUT, _NODE_NAME, _KIND, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TYPE, _FLOAT, _INTEGER = 1, 2, 3, 20, 1, 2
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_DTYPE, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_SIZE = 1, 2, 1, 1, 2, 1, 1
_DIMS, _DTYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_KEY, _VALUE, _IN_A_FILE = 1, 2, 1


@dataclass(frozen=True)
class Node:
    """A node: its message, and what is read of it. `attributes`: integers, `floats`: floats."""

    stored: memoryview
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int]
    floats: Mapping[str, float]


@dataclass(frozen=True)
class Tensor:
    """An initializer: its message, and what is read of it. Its bytes: `raw`, or `place` (offset, nbytes) in a file."""

    stored: memoryview
    name: str
    dtype: int
    shape: tuple[int, ...]
    raw: memoryview | None
    place: tuple[int, int] | None


def graph_parts(model: bytes) -> tuple[list[memoryview], list[memoryview]]:
    """The messages of a model's nodes and of its initializers. Raises ValueError if it is damaged."""
    parts = list(fields(_graph(model)))
    return _messages(parts, _GRAPH_NODE), _messages(parts, _GRAPH_INITIALIZER)


def initializers(messages: Iterable[memoryview]) -> list[Tensor]:
    """The initializers with these messages."""
    return [_tensor(one) for one in messages]


def node_of(stored: memoryview) -> Node:
    """The node with this message."""
    parts = list(fields(stored))
    attributes = [list(fields(one)) for one in _messages(parts, _ATTRIBUTE)]
    kind = next(iter(_strings(parts, _KIND)), "")
    inputs, outputs = (tuple(_strings(parts, number)) for number in (_INPUT, _OUTPUT))
    return Node(stored, kind, inputs, outputs, _integer_attributes(attributes), _floats(attributes))


def our_node(
    node: Node,
    kind: str,
    inputs: Sequence[str],
    attributes: Mapping[str, int],
    floats: Mapping[str, float] = MappingProxyType({}),
) -> Node:
    """A node of our operator `kind` in place of `node`: it keeps name and outputs."""
    kept = [one for one in fields(node.stored) if one.number in (_OUTPUT, _NODE_NAME)]
    parts = [*(text(_INPUT, name) for name in inputs), *kept, text(_KIND, kind), text(_DOMAIN, DOMAIN)]
    parts += [nested(_ATTRIBUTE, _attribute(name, value)) for name, value in attributes.items()]
    parts += [nested(_ATTRIBUTE, _float_attribute(name, value)) for name, value in floats.items()]
    return Node(memoryview(message(parts)), kind, tuple(inputs), node.outputs, attributes, floats)


def without_unused(nodes: Sequence[Node], kinds: Collection[str], outputs: Iterable[str]) -> list[Node]:
    """The nodes without those of `kinds` whose results neither a node nor the graph's `outputs` use."""
    while True:
        used = {name for node in nodes for name in node.inputs} | set(outputs)
        kept = [node for node in nodes if node.kind not in kinds or used.intersection(node.outputs)]
        if len(kept) == len(nodes):
            return kept
        nodes = kept


def output_types(model: bytes) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of each output of a model that is a tensor. An axis whose length is not fixed is 0."""
    found = dict[str, tuple[int, tuple[int, ...]]]()
    for stored in _messages(fields(_graph(model)), _GRAPH_OUTPUT):
        parts = list(fields(stored))
        for kind in _messages(parts, _VALUE_TYPE):
            for tensor in _messages(fields(kind), _TYPE_TENSOR):
                described = list(fields(tensor))
                dims = [
                    dim for shape in _messages(described, _TENSOR_SHAPE) for dim in _messages(fields(shape), _SHAPE_DIM)
                ]
                sizes = tuple(next(iter(_integers(list(fields(dim)), _DIM_SIZE)), 0) for dim in dims)
                found[_strings(parts, _VALUE_NAME)[0]] = next(iter(_integers(described, _TENSOR_DTYPE)), 0), sizes
    return found


def external_tensor(name: str, dtype: int, shape: Sequence[int], place: tuple[str, int, int]) -> bytes:
    """The message of an initializer whose bytes are in a file. `place`: the file's name, offset, nbytes."""
    entries = zip(("location", "offset", "length"), map(str, place), strict=True)
    parts = [*(integer(_DIMS, size) for size in shape), integer(_DTYPE, dtype), text(_NAME, name)]
    parts += [nested(_EXTERNAL, message([text(_KEY, key), text(_VALUE, value)])) for key, value in entries]
    return message([*parts, integer(_LOCATION, _IN_A_FILE)])


def model_with(model: bytes, nodes: Sequence[memoryview], tensors: Sequence[bytes], domain: str) -> bytes:
    """The model with other nodes and initializers, and with version 1 of the operators of `domain`."""
    kept = [one for one in fields(_graph(model)) if one.number not in (_GRAPH_NODE, _GRAPH_INITIALIZER)]
    new = [Field(_GRAPH_NODE, BYTES, node) for node in nodes]
    graph = message([*new, *kept, *(nested(_GRAPH_INITIALIZER, tensor) for tensor in tensors)])
    opset = message([text(_OPSET_DOMAIN, domain), integer(_OPSET_VERSION, 1)])
    others = [one for one in fields(model) if one.number != _MODEL_GRAPH]
    return message([*others, nested(_MODEL_OPSET, opset), nested(_MODEL_GRAPH, graph)])


def _graph(model: bytes) -> memoryview:
    found = _messages(fields(model), _MODEL_GRAPH)
    if not found:
        raise ValueError("the model has no graph")
    return found[0]


def _tensor(stored: memoryview) -> Tensor:
    parts = list(fields(stored))
    entries = [list(fields(one)) for one in _messages(parts, _EXTERNAL)]
    place = {_strings(entry, _KEY)[0]: _strings(entry, _VALUE)[0] for entry in entries}
    return Tensor(
        stored,
        next(iter(_strings(parts, _NAME)), ""),
        next(iter(_integers(parts, _DTYPE)), 0),
        tuple(_integers(parts, _DIMS)),
        next(iter(_messages(parts, _RAW)), None),
        (int(place.get("offset", 0)), int(place["length"])) if place else None,
    )


def _integer_attributes(attributes: Sequence[list[Field]]) -> dict[str, int]:
    integers = [one for one in attributes if _integers(one, _ATTRIBUTE_TYPE) == [_INTEGER]]
    return {
        _strings(one, _ATTRIBUTE_NAME)[0]: _signed(next(iter(_integers(one, _ATTRIBUTE_INTEGER)), 0))
        for one in integers
    }


def _signed(value: int) -> int:
    """The integer of 64 bits that a message holds as `value`."""
    return value - (1 << 64) if value >> 63 else value


def _floats(attributes: Sequence[list[Field]]) -> dict[str, float]:
    stored = {
        _strings(one, _ATTRIBUTE_NAME)[0]: next(iter(_messages(one, _ATTRIBUTE_FLOAT)), memoryview(bytes(4)))
        for one in attributes
        if _integers(one, _ATTRIBUTE_TYPE) == [_FLOAT]
    }
    return {name: struct.unpack("<f", value)[0] for name, value in stored.items()}


def _attribute(name: str, value: int) -> bytes:
    return message(
        [text(_ATTRIBUTE_NAME, name), integer(_ATTRIBUTE_INTEGER, value), integer(_ATTRIBUTE_TYPE, _INTEGER)]
    )


def _float_attribute(name: str, value: float) -> bytes:
    stored = Field(_ATTRIBUTE_FLOAT, FIXED32, memoryview(struct.pack("<f", value)))
    return message([text(_ATTRIBUTE_NAME, name), stored, integer(_ATTRIBUTE_TYPE, _FLOAT)])


def _messages(parts: Iterable[Field], number: int) -> list[memoryview]:
    return [one.value for one in parts if one.number == number and isinstance(one.value, memoryview)]


def _strings(parts: Iterable[Field], number: int) -> list[str]:
    return [bytes(value).decode() for value in _messages(parts, number)]


def _integers(parts: Iterable[Field], number: int) -> list[int]:
    """Integers of a repeated field, which may stand one by one or packed."""
    found = list[int]()
    for one in parts:
        if one.number == number:
            found += [one.value] if isinstance(one.value, int) else _unpacked(one.value)
    return found


def _unpacked(data: memoryview) -> list[int]:
    """The integers of a packed field: it has no tags, so each gets one."""
    tagged = bytearray()
    starts = True
    for byte in data:
        if starts:
            tagged += bytes([1 << 3 | VARINT])
        tagged.append(byte)
        starts = byte < 128
    return [one.value for one in fields(bytes(tagged)) if isinstance(one.value, int)]
