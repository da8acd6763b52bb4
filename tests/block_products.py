"""Products with weights in blocks for tests: random weights as ONNX Runtime stores them, sessions, exact results."""

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper, numpy_helper

from pplex.kernels import Kernel
from pplex.runtime.arrays import Array
from pplex.runtime.kernel_packing import packed

TOP = 127  # activations are rounded to int8 with the largest of a block as 127
EPSILON = 1e-8  # of an RMSNorm
SMALLEST = 1e-30  # blocks without a larger number count as 0


class Product:
    """A matrix [depth, outputs] of weights with 4 or 8 bits in blocks, with random scales of both signs."""

    def __init__(self, depth: int, outputs: int, block: int, bits: int = 4, scale: float = 0.01, seed: int = 0):
        random = np.random.default_rng(seed)
        self.depth, self.outputs, self.block, self.bits = depth, outputs, block, bits
        self.values = random.integers(0, 256, (outputs, depth // block, block * bits // 8), np.uint8)
        self.scales = (scale * random.standard_normal((outputs, depth // block))).astype(np.float16)

    def packed(self) -> Array:
        return np.concatenate(list(packed(self.values, self.scales, self.bits)))

    def exact(self) -> Array:
        """The weights, [depth, outputs] float64."""
        halves = np.stack([self.values & 15, self.values >> 4], -1).reshape(self.outputs, -1, self.block)
        weights = halves - 8.0 if self.bits == 4 else self.values - 128.0
        return (weights * self.scales[..., None].astype(np.float64)).reshape(self.outputs, -1).T

    def of_rounded(self, x: Array) -> Array:
        """The product with activations rounded to int8 for each block, in float64: what every kernel must return."""
        blocks = x.reshape(len(x), -1, self.block).astype(np.float32)
        largest = np.abs(blocks).max(-1, keepdims=True)
        inverse = np.divide(np.float32(TOP), largest, out=np.zeros_like(largest), where=largest > SMALLEST)
        rounded = np.rint(blocks * inverse).astype(np.float64) * np.where(largest > SMALLEST, largest, 0) / TOP
        return rounded.reshape(x.shape) @ self.exact()

    def session(self, kernel: Kernel, threads: int = 1) -> Any:
        """The product as a session of ONNX Runtime with our operator; its input x is [rows, depth]."""
        return session_of(self.node(), {"packed": self.packed()}, kernel, threads)

    def surrounded(
        self,
        kernel: Kernel,
        norm: Array | None = None,
        gated: bool = False,
        added: Array | None = None,
        threads: int = 1,
    ) -> Any:
        """The same with an RMSNorm or a gate before it and an addition after it."""
        constants = {"packed": self.packed()}
        constants |= {name: array for name, array in (("norm", norm), ("added", added)) if array is not None}
        inputs = ["x", "packed", *(name if name in constants else "" for name in ("norm", "added"))]
        return session_of(self.node(*inputs, gated=int(gated), epsilon=EPSILON), constants, kernel, threads)

    def node(self, *inputs: str, **attributes: Any) -> Any:
        """The node; without `inputs` of x and the packed weights alone."""
        sizes = {"K": self.depth, "N": self.outputs, "block": self.block, "bits": self.bits, "gated": 0, "epsilon": 0.0}
        names = inputs or ("x", "packed")
        return helper.make_node("MatMulPacked", names, ["y"], domain="pplex", **sizes | attributes)

    def theirs(self, kernel: Kernel) -> Any:
        """The same with ONNX Runtime's operator."""
        sizes = {"K": self.depth, "N": self.outputs, "block_size": self.block, "bits": self.bits, "accuracy_level": 4}
        node = helper.make_node("MatMulNBits", ["x", "values", "scales"], ["y"], domain="com.microsoft", **sizes)
        scales = self.scales.astype(np.float32).ravel()
        return session_of(node, {"values": self.values, "scales": scales}, kernel)


def session_of(node: Any, weights: dict[str, Array], kernel: Kernel, threads: int = 1) -> Any:
    """A session of one node with the input x and the output y, both float32 of any shape."""
    shapeless = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "product", shapeless[:1], shapeless[1:], constants)
    opsets = [helper.make_opsetid(*one) for one in (("", 21), ("com.microsoft", 1), ("pplex", 1))]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(kernel.path))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, x: Array) -> Array:
    y: Array = session.run(None, {"x": x})[0]
    return y
