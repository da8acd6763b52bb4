"""Times a chain of products with 4-bit weights in our kernel, ONNX Runtime's, OpenVINO's and ggml's, in turns.

    python benchmarks/peers.py [--ggml FOLDER] [--out OUT.json]

FOLDER: of libggml-base.so and libggml-cpu.so, as a build of llama.cpp leaves them. OpenVINO takes part if it is installed.
All multiply the same MATRICES matrices of SIZE x SIZE in blocks of 32, more than a cache holds; a difference of the results
ends the run. Between the kinds is a pause, because the threads of some spin after their work.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from pplex.bench.bandwidth import Bandwidth
from pplex.kernels import Kernel
from pplex.measure.machine import machine
from pplex.runtime.arrays import Array
from pplex.runtime.kernel_choice import chosen_kernel
from pplex.runtime.kernel_packing import packed, packed_shape
from pplex.runtime.mapped import HugePages
from pplex.runtime.ort import available_threads

SIZE, BLOCK, MATRICES = 4096, 32, 24
ROWS = (1, 8, 32)
RUNS, PAUSE_S = 11, 0.1
DRIFT = 0.05  # of the results' norm: all round the activations to 8 bits, but not all alike
Chain = Callable[[Array], Array]  # [rows, SIZE] -> [rows, SIZE]


class Weights:
    """Random matrices: values [N, blocks, 16], two weights plus 8 in a byte, the lower half first; scales [N, blocks]."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        shape = (MATRICES, SIZE, SIZE // BLOCK)
        self.values = random.integers(0, 256, (*shape, BLOCK // 2), np.uint8)
        self.scales = (random.uniform(0.5, 1.5, shape) / (4.6 * SIZE**0.5)).astype(np.float16)  # keeps the norm of x


def ours(weights: Weights, threads: int, kernel: Kernel, folder: Path) -> Chain:
    file = folder / f"packed-{threads}"
    with file.open("wb") as out:
        for values, scales in zip(weights.values, weights.scales, strict=True):
            out.writelines(piece.data for piece in packed(values, scales, 4))
    shape = packed_shape(SIZE, SIZE // BLOCK, BLOCK, 4)
    nbytes, constants, nodes = int(np.prod(shape)), list[Any](), list[Any]()
    for i in range(MATRICES):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.UINT8, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", file.name), ("offset", i * nbytes), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        constants.append(tensor)
        sizes: dict[str, Any] = {"K": SIZE, "N": SIZE, "block": BLOCK, "bits": 4, "gated": 0, "epsilon": 0.0}
        nodes.append(helper.make_node("MatMulPacked", [f"x{i}", f"w{i}"], [f"x{i + 1}"], domain="pplex", **sizes))
    options, held = _options(threads), HugePages(file)
    options.register_custom_ops_library(str(kernel.path))
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    options.add_external_initializers_from_files_in_memory([held.name], [held.bytes], [len(held.bytes)])
    session = _session(nodes, constants, options)

    def run(x: Array, held: HugePages = held) -> Array:  # ONNX Runtime does not keep the memory
        return _run(session, x)

    return run


def onnx_runtime(weights: Weights, threads: int) -> Chain:
    constants, nodes = list[Any](), list[Any]()
    for i, (values, scales) in enumerate(zip(weights.values, weights.scales, strict=True)):
        constants += [
            numpy_helper.from_array(values, f"w{i}"),
            numpy_helper.from_array(scales.astype(np.float32).ravel(), f"s{i}"),
        ]
        sizes: dict[str, Any] = {"K": SIZE, "N": SIZE, "block_size": BLOCK, "bits": 4, "accuracy_level": 4}
        inputs = [f"x{i}", f"w{i}", f"s{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"x{i + 1}"], domain="com.microsoft", **sizes))
    session = _session(nodes, constants, _options(threads))
    return lambda x: _run(session, x)


def openvino(weights: Weights, threads: int) -> Chain:
    ov, ops = import_module("openvino"), import_module("openvino.opset13")
    x = y = ops.parameter([-1, SIZE], np.float32)
    for values, scales in zip(weights.values, weights.scales, strict=True):
        signed = ov.Tensor(values.reshape(-1) ^ 0x88, [SIZE, SIZE // BLOCK, BLOCK], ov.Type.i4)
        scaled = ops.multiply(ops.convert(ops.constant(signed), "f16"), ops.constant(scales[..., None]))
        matrix = ops.convert(ops.reshape(scaled, [SIZE, SIZE], special_zero=False), "f32")
        y = ops.matmul(y, matrix, transpose_a=False, transpose_b=True)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": BLOCK,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(ov.Model([y], [x], "chain"), "CPU", settings).create_infer_request()
    return lambda x: np.array(request.infer([x])[0])


class Ggml:
    """ggml's Q4_0, with its weights in the layout that it prefers on this processor."""

    F32, Q4_0 = 0, 2

    class Params(ctypes.Structure):
        _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

    def __init__(self, folder: Path):
        self._libraries = [
            ctypes.CDLL(str(folder / f"libggml-{part}.so"), ctypes.RTLD_GLOBAL) for part in ("base", "cpu")
        ]
        registry = self("backend_cpu_reg")
        device = self("backend_reg_dev_get", registry, ctypes.c_size_t(0))
        find = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
        address = self("backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        layouts = ctypes.cast(address, find)(device)
        self._layout = ctypes.c_void_p(layouts[0])
        name = ctypes.cast(self("backend_buft_name", self._layout), ctypes.c_char_p).value or b""
        self.name = f"ggml, {name.decode()}"

    def __call__(self, name: str, *args: Any) -> ctypes.c_void_p:
        function = next(getattr(one, f"ggml_{name}") for one in self._libraries if hasattr(one, f"ggml_{name}"))
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(*args))

    def chain(self, weights: Weights, threads: int) -> Chain:
        backend, context, tensors = self("backend_cpu_init"), self._context(), list[ctypes.c_void_p]()
        self("backend_cpu_set_n_threads", backend, threads)
        size = ctypes.c_int64(SIZE)
        for _ in range(MATRICES):
            tensors.append(self("new_tensor_2d", context, self.Q4_0, size, size))
        self("backend_alloc_ctx_tensors_from_buft", context, self._layout)
        for tensor, values, scales in zip(tensors, weights.values, weights.scales, strict=True):
            self._set(tensor, _q4_0(values, scales))
        calls = {rows: self._bound(backend, tensors, rows) for rows in ROWS}
        return lambda x: calls[len(x)](x)

    def _bound(self, backend: ctypes.c_void_p, matrices: list[ctypes.c_void_p], rows: int) -> Chain:
        context = self._context()
        x = y = self("new_tensor_2d", context, self.F32, ctypes.c_int64(SIZE), ctypes.c_int64(rows))
        self("set_input", x)
        for matrix in matrices:
            y = self("mul_mat", context, matrix, y)
        graph = self("new_graph", context)
        self("build_forward_expand", graph, y)
        self("gallocr_alloc_graph", self("gallocr_new", self("backend_get_default_buffer_type", backend)), graph)
        result = np.empty((rows, SIZE), np.float32)

        def run(given: Array) -> Array:
            self._set(x, given)
            self("backend_graph_compute", backend, graph)
            self("backend_tensor_get", y, result.ctypes.data_as(ctypes.c_void_p), *_span(result))
            return result

        return run

    def _context(self) -> ctypes.c_void_p:
        return self("init", self.Params(64 << 20, None, True))

    def _set(self, tensor: ctypes.c_void_p, array: Array) -> None:
        self("backend_tensor_set", tensor, array.ctypes.data_as(ctypes.c_void_p), *_span(array))


def _span(array: Array) -> tuple[ctypes.c_size_t, ctypes.c_size_t]:
    return ctypes.c_size_t(0), ctypes.c_size_t(array.nbytes)


def _q4_0(values: Array, scales: Array) -> Array:
    """A block is a float16 scale and 16 bytes: byte j has weight j in its lower half, and 16 + j in its upper one."""
    halves = np.stack([values & 15, values >> 4], -1).reshape(*scales.shape, BLOCK)
    bytes_ = halves[..., : BLOCK // 2] | halves[..., BLOCK // 2 :] << 4
    return np.ascontiguousarray(np.concatenate([scales[..., None].view(np.uint8), bytes_], -1))


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(nodes: list[Any], constants: list[Any], options: Any) -> Any:
    ends = [helper.make_tensor_value_info(name, 1, ["rows", SIZE]) for name in ("x0", f"x{MATRICES}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid(*one) for one in (("", 21), ("com.microsoft", 1), ("pplex", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, x: Array) -> Array:
    y: Array = session.run(None, {"x0": x})[0]
    return y


def measured(chains: dict[str, Chain], threads: int) -> list[dict[str, Any]]:
    """One row for each number of rows: medians in milliseconds, and how many times as long as ours each takes."""
    bandwidth, rows = Bandwidth(threads), list[dict[str, Any]]()
    for count in ROWS:
        x = np.random.default_rng(count).standard_normal((count, SIZE), np.float32)
        expected, times, read = chains["ours"](x), {name: list[float]() for name in chains}, list[float]()
        for _ in range(RUNS):
            read.append(bandwidth.measure())
            for name, chain in chains.items():
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                y = chain(x)
                times[name].append(time.perf_counter() - began)
                if np.linalg.norm(y - expected) > DRIFT * np.linalg.norm(expected):
                    raise SystemExit(f"{name} has another result.")
        row: dict[str, Any] = {"threads": threads, "rows": count, "read GB/s": round(median(read) / 1e9, 1)}
        row |= {f"{name}, ms": round(1000 * median(each), 2) for name, each in times.items()}
        row |= {f"{name} / ours": round(median(each) / median(times["ours"]), 2) for name, each in times.items()}
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="OUT.json")
    options = parser.parse_args()
    kernel = chosen_kernel()
    if kernel is None:
        raise SystemExit("Our kernels cannot run here: see pplex-export doctor.")
    weights, ggml = Weights(), options.ggml and Ggml(options.ggml)
    report: dict[str, Any] = {
        "machine": machine(None, "onnxruntime", "openvino"),
        "instructions": kernel.level,
        "rows": [],
    }
    with TemporaryDirectory() as folder:
        for threads in sorted({1, available_threads()}):
            chains = {
                "ours": ours(weights, threads, kernel, Path(folder)),
                "ONNX Runtime": onnx_runtime(weights, threads),
            }
            if find_spec("openvino"):
                chains["OpenVINO"] = openvino(weights, threads)
            if ggml:
                chains[ggml.name] = ggml.chain(weights, threads)
            report["rows"] += measured(chains, threads)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
