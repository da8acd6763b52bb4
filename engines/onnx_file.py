"""Statistics of an ONNX file, without reading its weights: called by `engines.compile` and `engines.bundle_report`."""

import math
from collections import defaultdict

import onnx

_FOUR_BITS = ("INT4", "UINT4")


def weights_by_dtype(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of initializers and constants, by ONNX's name for their type."""
    nbytes: dict[str, int] = defaultdict(int)
    constants = (
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    )
    for tensor in (*model.graph.initializer, *constants):
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        bits = 4 if name in _FOUR_BITS else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        nbytes[name] += math.ceil(math.prod(tensor.dims) * bits / 8)
    return dict(sorted(nbytes.items()))


def node_counts(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """The number of nodes of each type, by the dtype of their first output if the file records it."""
    values = (*model.graph.value_info, *model.graph.output)
    dtypes = {value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for node in model.graph.node:
        counts[node.op_type][dtypes.get(node.output[0], "untold")] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}
