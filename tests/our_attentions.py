"""Our attentions for tests: random rings, sessions of an operator, and exact results."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from pplex.kernels import Kernel
from pplex.runtime.arrays import Array

INPUTS = {"q": 10, "k": 10, "v": 10, "lengths": 7}  # float16 and int64


@dataclass
class Attention:
    """q [B, H, T, D], k and v [B, H, C, D] in float16; lengths [B]: entries that the last query reads."""

    q: Array
    k: Array
    v: Array
    lengths: Array

    @classmethod
    def random(
        cls,
        lengths: tuple[int, ...],
        heads: int = 2,
        steps: int = 1,
        entries: int = 40,
        width: int = 16,
        scale: float = 1,
    ) -> "Attention":
        random = np.random.default_rng(width)
        rings = (len(lengths), heads, entries, width)
        arrays = [random.standard_normal(shape) for shape in ((len(lengths), heads, steps, width), rings, rings)]
        q, k, v = (array.astype(np.float16) for array in (scale * arrays[0], *arrays[1:]))
        return cls(q, k, v, np.array(lengths, np.int64))

    def exact(self) -> Array:
        """The result in float64."""
        y = np.zeros(self.q.shape)
        steps, width = self.q.shape[2:]
        for slot, length in enumerate(self.lengths):
            for step in range(steps):
                count = length - (steps - 1 - step)
                if count <= 0:
                    continue
                k, v = (ring[slot, :, :count].astype(np.float64) for ring in (self.k, self.v))
                scores = np.einsum("hd,hnd->hn", self.q[slot, :, step].astype(np.float64), k) / np.sqrt(width)
                weights = np.exp(scores - scores.max(1, keepdims=True))
                y[slot, :, step] = np.einsum("hn,hnd->hd", weights / weights.sum(1, keepdims=True), v)
        return y

    def run(self, session: Any) -> Array:
        y: Array = session.run(None, {name: getattr(self, name) for name in INPUTS})[0]
        return y


def attention_session(kernel: Kernel, threads: int = 1) -> Any:
    """A session of ONNX Runtime with one RingAttention, for inputs of any shape."""
    values = {name: helper.make_tensor_value_info(name, kind, None) for name, kind in {**INPUTS, "y": 10}.items()}
    node = helper.make_node("RingAttention", list(INPUTS), ["y"], domain="pplex")
    graph = helper.make_graph([node], "attention", [values[name] for name in INPUTS], [values["y"]])
    return _session(graph, kernel, threads)


def _session(graph: Any, kernel: Kernel, threads: int) -> Any:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("pplex", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(kernel.path))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def steps_session(kernel: Kernel, heads: int, count: int, threads: int = 1) -> Any:
    """A session with one StepAttention for `count` steps, its inputs x0, x1, ..., each [B, 1, 3 * H * D] float32."""
    names = [f"x{i}" for i in range(count)]
    values = [helper.make_tensor_value_info(name, 1, None) for name in (*names, "y")]
    node = helper.make_node("StepAttention", names, ["y"], domain="pplex", heads=heads)
    return _session(helper.make_graph([node], "steps", values[:-1], values[-1:]), kernel, threads)


def exact_steps(steps: list[Array], heads: int) -> Array:
    """What StepAttention must return, in float64."""
    slots, _, size = steps[0].shape
    parts = np.stack(steps).astype(np.float64).reshape(len(steps), slots, 3, heads, size // (3 * heads))
    scores = np.einsum("bhd,nbhd->bhn", parts[-1, :, 0], parts[:, :, 1]) / np.sqrt(parts.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhn,nbhd->bhd", weights / weights.sum(-1, keepdims=True), parts[:, :, 2])
    return y.reshape(slots, 1, size // 3)
