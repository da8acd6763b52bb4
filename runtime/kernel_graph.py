"""Rewrites an optimised graph for our kernels. Products with 4 or 8 bits get packed weights:

    x, values, scales -> MatMulNBits  -> y      as ONNX Runtime optimises the graph
    x, packed         -> MatMulPacked -> y      as our kernel reads it: the packed weights are in a file of their own

For what surrounds a product see `runtime.kernel_products`, for attention `runtime.kernel_attention`. The packed matrices
stand in the order in which a step reads them.

Called by `runtime.ort`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pplex.kernels import BITS, BLOCKS, DOMAIN, PRODUCT
from pplex.runtime.arrays import Array
from pplex.runtime.kernel_attention import with_our_attention
from pplex.runtime.kernel_packing import packed, packed_shape
from pplex.runtime.kernel_products import with_surroundings
from pplex.runtime.mapped import MappedFile
from pplex.runtime.onnx_fields import (
    FLOAT32,
    UINT8,
    Node,
    Tensor,
    external_tensor,
    graph_parts,
    initializers,
    model_with,
    node_of,
    our_node,
    output_types,
)

_ALIGNMENT = 64  # bytes, of a tensor in a file: a line of the processor's cache


def pack_graph(model: Path, weights: Path, out: Path, out_weights: str, out_packed: str) -> None:
    """Rewrite the graph `model` with its file `weights` to `out`, with two files beside it: other and packed weights.

    Weights with a scale that float16 cannot hold keep ONNX Runtime's operator. Raises ValueError if the graph is damaged.
    """
    source = MappedFile(weights)
    with source.giving_back():
        graph = _Rewritten(model.read_bytes(), source)
        with (out.parent / out_packed).open("wb") as file:
            graph.pack(file, out_packed)
        with (out.parent / out_weights).open("wb") as file:
            graph.copy_others(file, out_weights)
    out.write_bytes(graph.model())


class _Rewritten:
    """A graph whose nodes and initializers are replaced one by one."""

    def __init__(self, model: bytes, weights: MappedFile):
        self._source, self._weights = model, weights
        nodes, tensors = graph_parts(model)
        self._outputs = output_types(model)
        self._nodes = with_our_attention([node_of(node) for node in nodes], self._outputs)
        self._tensors = {tensor.name: tensor for tensor in initializers(tensors)}
        self._new = dict[str, bytes]()
        self._replaced = set[str]()

    def pack(self, file: BinaryIO, name: str) -> None:
        """Replace the products that the kernel can compute. Their packed weights go to `file`, which has the name `name`."""
        for place, node in enumerate(self._nodes):
            if not _is_ours(node, self._tensors):
                continue
            x, values, scales = node.inputs
            half = self._half_scales(node)
            if half is None:
                continue
            new = f"{values}.packed"
            sizes = {key: node.attributes[key] for key in ("K", "N", "bits")} | {"block": node.attributes["block_size"]}
            self._nodes[place] = our_node(node, PRODUCT, (x, new), sizes)
            self._new[new] = self._write_packed(file, name, new, node, half)
            self._replaced |= {values, scales}
        self._nodes = with_surroundings(self._nodes, tuple(self._outputs), self._tensors)

    def copy_others(self, file: BinaryIO, name: str) -> None:
        """Copy to `file`, which has the name `name`, the other weights in the order in which nodes use them."""
        used = dict.fromkeys(name for node in self._nodes for name in node.inputs)
        unused = [name for name in self._tensors if name not in used and name not in self._replaced]
        for tensor in (self._tensors[name] for name in (*used, *unused) if name in self._tensors):
            if tensor.place is None:
                self._new[tensor.name] = bytes(tensor.stored)
                continue
            start, nbytes = tensor.place
            offset = _aligned(file)
            file.write(memoryview(self._weights.bytes)[start : start + nbytes])
            self._new[tensor.name] = external_tensor(tensor.name, tensor.dtype, tensor.shape, (name, offset, nbytes))

    def model(self) -> bytes:
        return model_with(self._source, [node.stored for node in self._nodes], list(self._new.values()), DOMAIN)

    def _half_scales(self, node: Node) -> Array | None:
        """The scales as float16, [N, blocks]; None if that changes one."""
        scales = self._array(node.inputs[2], np.dtype(np.float32)).reshape(node.attributes["N"], -1)
        with np.errstate(over="ignore"):
            half = scales.astype(np.float16)
        return half if np.array_equal(half.astype(np.float32), scales) else None

    def _write_packed(self, file: BinaryIO, name: str, new: str, node: Node, scales: Array) -> bytes:
        """Write the packed matrix of a product; returns its initializer, which has the name `new`."""
        values = self._array(node.inputs[1], np.dtype(np.uint8)).reshape(*scales.shape, -1)
        offset = _aligned(file)
        for piece in packed(values, scales, node.attributes["bits"]):
            file.write(piece.data)
        shape = packed_shape(len(scales), scales.shape[1], node.attributes["block_size"], node.attributes["bits"])
        return external_tensor(new, UINT8, shape, (name, offset, file.tell() - offset))

    def _array(self, name: str, dtype: "np.dtype[np.generic]") -> Array:
        tensor = self._tensors[name]
        if tensor.place is None:
            assert tensor.raw is not None
            return np.frombuffer(tensor.raw, dtype)
        start, nbytes = tensor.place
        return np.frombuffer(self._weights.bytes, dtype, nbytes // dtype.itemsize, start)


def _is_ours(node: Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the kernel can compute a node: 4 or 8 bits, whole blocks, no zero points, all weights constant."""
    sizes = node.attributes
    if node.kind != "MatMulNBits" or len(node.inputs) != 3 or sizes["bits"] not in BITS:
        return False
    if sizes["block_size"] not in BLOCKS or sizes["K"] % sizes["block_size"]:
        return False
    weights = [tensors[name] for name in node.inputs[1:] if name in tensors]
    readable = all(tensor.place or tensor.raw is not None for tensor in weights)
    return readable and [tensor.dtype for tensor in weights] == [UINT8, FLOAT32]


def _aligned(file: BinaryIO) -> int:
    """Fill up to the next aligned place; returns it."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    return file.tell()
