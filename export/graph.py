"""Turns a torch module into an ONNX graph on disk: called by `export.exporter`.

The module is traced on fake tensors, and its weights are written one at a time.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common
import onnxscript.optimizer
import torch
from onnx_ir.tensor_adapters import TorchTensor
from onnxscript import opset23 as op
from onnxscript.function_libs.torch_lib.ops.core import aten__to_copy, aten_convolution
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pplex.runtime.environment import TORCH_CACHES, temporary_cache
from pplex.runtime.errors import BuildError
from pplex.runtime.graphs import MAX_SLOTS, MAX_STEPS, GraphSpec, TensorSpec

OPSET = 24
EXTERNAL_DATA_BYTES = 1 << 20  # a graph with more weights keeps them in a separate file

# Sizes of the symbolic axes while tracing: above 1, because torch.export treats 1 as a constant.
_TRACED = {"B": 2, "T": 3, "C": 64}
_AXES = {"B": Dim("B", min=1, max=MAX_SLOTS), "T": Dim("T", min=1, max=MAX_STEPS), "C": Dim("C", min=1, max=1 << 20)}


def _to(x: Any, dtype: int) -> Any:
    return aten__to_copy(x, dtype=dtype)


def _and(x: Any, other: Any) -> Any:
    return op.And(x, other)


def _conv(
    x: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), groups: int = 1,
) -> Any:  # fmt: skip
    return aten_convolution(x, weight, bias, stride, padding, dilation, False, (0,), groups)


def _transposed_conv(
    x: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,), groups: int = 1, dilation: Sequence[int] = (1,),
) -> Any:  # fmt: skip
    return aten_convolution(x, weight, bias, stride, padding, dilation, True, output_padding, groups)


# Composite ops in our modules that the exporter cannot translate whole. The export fails for a missing one and names it.
_TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.to.dtype: _to,
    torch.ops.aten.__and__.Tensor: _and,
    torch.ops.aten.conv1d.default: _conv,
    torch.ops.aten.conv_transpose1d.default: _transposed_conv,
}


@temporary_cache(TORCH_CACHES)
def trace(spec: GraphSpec, module_type: Callable[..., nn.Module], *module_args: Any) -> ir.Model:
    """The module's optimised graph. Its weights are inputs after those of the spec; they have no data yet.

    Raises BuildError for an op outside the ONNX standard.
    """
    with FakeTensorMode(shape_env=ShapeEnv()), torch.device("cpu"):
        module = module_type(*module_args).eval().requires_grad_(False)
        inputs = tuple(_example(tensor) for tensor in spec.all_inputs)
    dims: list[Any] = [_dynamic(tensor) for tensor in spec.all_inputs]
    own = len(spec.inputs)
    with _quiet():
        shapes = (*dims[:own], tuple(dims[own:])) if spec.state else tuple(dims)
        traced = torch.export.export(module, inputs, dynamic_shapes=shapes)
        # Decomposing composite ops would trace the module again, which is half of an export's time. We translate them whole.
        traced.run_decompositions = lambda table: traced
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.all_inputs],
            output_names=[tensor.name for tensor in spec.all_outputs],
            dynamic_shapes=shapes,  # to name the axes
            custom_translation_table=_TRANSLATIONS,
            optimize=False,
        )
    assert program is not None
    model = program.model
    for name in _weights(model):
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    onnxscript.optimizer.optimize_ir(model)
    ir.passes.common.ClearMetadataAndDocStringPass()(model)  # stack traces, with the paths of this machine
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph if node.domain})
    if foreign or model.functions:
        raise BuildError(f"{spec.name}: ops outside the ONNX standard: {', '.join(foreign)}.")
    model.graph.name = spec.name
    model.producer_name = "pplex-export"
    return model


def save(model: ir.Model, spec: GraphSpec, weights: Mapping[str, ir.TensorProtocol], path: Path) -> list[Path]:
    """Give the traced graph its weights, write it and check it; returns the files written.

    More than a megabyte of weights goes into NAME.data beside the graph. Each tensor is read when it is written.
    """
    names = {str(value.name) for value in model.graph.inputs[len(spec.all_inputs) :]}
    if names != set(weights):
        raise BuildError(f"{spec.name}: these weights do not match the graph: {sorted(names ^ set(weights))}.")
    while len(model.graph.inputs) > len(spec.all_inputs):
        value = model.graph.inputs.pop()
        value.const_value = weights[str(value.name)]
        model.graph.initializers.add(value)
    external = sum(tensor.nbytes for tensor in weights.values()) > EXTERNAL_DATA_BYTES
    data = path.with_suffix(".data")
    ir.save(model, path, external_data=data.name if external else None)
    check(path)
    return [path, data] if external else [path]


def check(path: Path) -> None:
    """Run ONNX's checker with full shape inference. Raises BuildError with its message."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"{path.name} is not valid ONNX: {error}") from error


def lazy_weight(name: str, read: Callable[[], Tensor], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """An initializer that is read only when it is written. int4 is packed: two numbers in a byte."""

    def load() -> ir.TensorProtocol:
        tensor = read()
        if dtype == ir.DataType.INT4:
            return ir.PackedTensor(tensor.numpy(), dtype, shape=shape, name=name)
        return TorchTensor(tensor, name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)


def _weights(model: ir.Model) -> list[str]:
    """The initializers of parameters, in order. Other initializers are constants of the traced code."""
    from torch._subclasses.fake_tensor import FakeTensor

    return [
        n for n, v in model.graph.initializers.items() if isinstance(getattr(v.const_value, "raw", None), FakeTensor)
    ]


def _example(tensor: TensorSpec) -> Tensor:
    shape = [_TRACED[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def _dynamic(tensor: TensorSpec) -> dict[int, Any]:
    return {axis: _AXES[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress and the internal warnings of torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
