"""The stored form of each weight, and the standard ONNX nodes that dequantize it: called by `export.exporter`."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from pplex.export import weights
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import FORMS, NO_FORMS, Form, Forms, group_of, role_of
from pplex.runtime.precision import BUILT

IR_TYPES = {"int4": ir.DataType.INT4, "int8": ir.DataType.INT8, "float8_e4m3fn": ir.DataType.FLOAT8E4M3FN}
_BLOCK_AXIS, _COLUMN_AXIS = 0, 1  # of a weight [K, N]


@dataclass(frozen=True)
class Storage:
    """A quantized weight [K, N]: its dtype, and how many weights along K share a scale (0: a whole column)."""

    dtype: str
    block: int
    shape: tuple[int, int]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return (self.shape[0] // self.block, self.shape[1]) if self.block else (self.shape[1],)


def storages(
    graph: str, config: ModelConfig, precision: Mapping[str, str], compiled: bool = False, forms: Forms = NO_FORMS
) -> dict[str, Storage]:
    """The quantized weights of a graph by name: matrices that multiply. Tables of embeddings keep 16 bits.

    `compiled`: of a graph that becomes an engine. `forms`: those of a mixed precision.
    """
    chosen, given, result = BUILT[precision[graph]], forms.get(graph, {}), {}
    for name, parameter in weights.parameters(graph, config, precision).items():
        if not name.endswith(".weight") or parameter.dim() != 2:
            continue
        own = given.get(group_of(name))
        form = chosen.form(role_of(group_of(name)), compiled) if own is None else FORMS[own]
        if form.dtype in IR_TYPES:
            result[name] = stored_as(form, (parameter.shape[0], parameter.shape[1]))
    return result


def stored_as(form: Form, shape: tuple[int, int]) -> Storage:
    """A weight of this shape in a form."""
    return Storage(form.dtype, form.block_of(shape[0]), shape)


def dequantize_in_graph(model: ir.Model, name: str, storage: Storage) -> None:
    """Replace the graph input `name`, a weight, by the inputs `name.values` and `name.scale` and a DequantizeLinear."""
    weight = _take_input(model, name)
    assert weight.dtype is not None
    values = ir.Value(name=f"{name}.values", shape=ir.Shape(storage.shape), type=ir.TensorType(IR_TYPES[storage.dtype]))
    scale = ir.Value(name=f"{name}.scale", shape=ir.Shape(storage.scale_shape), type=ir.TensorType(weight.dtype))
    model.graph.inputs.extend([values, scale])
    attributes = {"axis": _BLOCK_AXIS, "block_size": storage.block} if storage.block else {"axis": _COLUMN_AXIS}
    node = ir.node("DequantizeLinear", [values, scale], attributes=attributes, name=f"dequantize.{name}")
    _name_output(node, weight, name)
    for user, index in tuple(weight.uses()):
        user.replace_input_with(index, node.outputs[0])
    model.graph.insert_before(_first_user(model, node.outputs[0]), node)


def quantize_input_in_graph(model: ir.Model, name: str) -> None:
    """Round the activations that meet the weight `name` to fp8 and back; their scale is a new input, `name.input_scale`."""
    dequantize = next(node for node in model.graph if node.name == f"dequantize.{name}")
    (product, _), *others = dequantize.outputs[0].uses()
    assert product.op_type == "MatMul" and not others, name
    x = product.inputs[0]
    assert x is not None and x.dtype is not None
    scale = ir.Value(name=f"{name}.input_scale", shape=ir.Shape([]), type=ir.TensorType(x.dtype))
    model.graph.inputs.append(scale)
    to_fp8 = {"output_dtype": int(ir.DataType.FLOAT8E4M3FN)}
    down = ir.node("QuantizeLinear", [x, scale], attributes=to_fp8, name=f"quantize_input.{name}")
    up = ir.node("DequantizeLinear", [down.outputs[0], scale], name=f"dequantize_input.{name}")
    down.outputs[0].name = f"{name}.input.fp8"
    down.outputs[0].type, down.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT8E4M3FN), x.shape
    _name_output(up, x, f"{name}.input")
    product.replace_input_with(0, up.outputs[0])
    model.graph.insert_before(product, [down, up])


def _take_input(model: ir.Model, name: str) -> ir.Value:
    value = next(value for value in model.graph.inputs if value.name == name)
    model.graph.inputs.remove(value)
    return value


def _name_output(node: ir.Node, like: ir.Value, name: str) -> None:
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{name}.dequantized", like.shape, ir.TensorType(like.dtype)  # type: ignore[arg-type]


def _first_user(model: ir.Model, value: ir.Value) -> ir.Node:
    users = {user for user, _ in value.uses()}
    return next(node for node in model.graph if node in users)
