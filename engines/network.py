"""Parses a graph with TensorRT, and checks for parts that the parser silently leaves out. Called by `engines.compile`."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from pplex.engines.library import LoadedLibrary, creation_flags
from pplex.runtime.errors import BuildError
from pplex.runtime.graphs import GraphSpec, TensorSpec

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64", "bool": "BOOL"}
_ATTENTION = "_AttentionInput"  # the parser's suffix: a layer is named after its node
_MASK, _LENGTHS = 3, 6  # inputs of ONNX's Attention; the parser ignores the lengths


def parse(library: LoadedLibrary, builder: Any, logger: Any, path: Path, capacity: int) -> tuple[Any, onnx.ModelProto]:
    """The network of one ONNX file with a fixed ring capacity, and the file's graph without weights.

    Raises BuildError with the parser's message.
    """
    trt = library.trt
    model = with_capacity(onnx.load(path, load_external_data=False), capacity)
    network = builder.create_network(creation_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString(), str(path)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(f"{library} cannot parse {path.name}: {errors}")
    return network, model


def with_capacity(model: onnx.ModelProto, capacity: int) -> onnx.ModelProto:
    """The graph with its symbolic ring capacity C fixed: TensorRT's KV cache layer needs it static."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "C":
                dim.dim_value = capacity
    return model


def allow_plain_attention(trt: Any, network: Any) -> None:
    """Let attention use separate kernels if no fused kernel fits, as in float32 or for small heads."""
    for attention in attentions(trt, network).values():
        attention.decomposable = True


def limit_attention(trt: Any, network: Any, model: onnx.ModelProto) -> None:
    """Give attentions the lengths of the graph, which the parser ignores: their kernels then stop at the last entry in use.

    The mask hides the other entries, too. So the result is the same in a library that does not take lengths.
    """
    if not hasattr(trt.IAttention, "key_value_lengths"):
        return
    tensors = {
        layer.get_output(i).name: layer.get_output(i) for layer in layers(network) for i in range(layer.num_outputs)
    }
    tensors |= {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    made, lengths = attentions(trt, network), dict[str, Any]()
    for node in (node for node in model.graph.node if node.op_type == "Attention" and len(node.input) > _LENGTHS):
        name = node.input[_LENGTHS]
        if node.name in made and name in tensors:
            if name not in lengths:
                cast = network.add_cast(tensors[name], trt.int32)
                cast.name = f"{name}_int32"
                lengths[name] = cast.get_output(0)
            made[node.name].key_value_lengths = lengths[name]


def check_network(library: LoadedLibrary, network: Any, model: onnx.ModelProto, spec: GraphSpec, capacity: int) -> None:
    """Raises BuildError that lists every part of the graph or its contract that the network lacks."""
    problems = [
        *_contract_problems(network, spec, capacity),
        *_ignored_problems(network, model),
        *_attention_problems(library.trt, network, model, spec),
        *_ring_problems(library.trt, network, spec),
    ]
    if problems:
        raise BuildError(
            f"{library} parsed {spec.name}.onnx without an error, but changed it:\n  " + "\n  ".join(problems)
        )


def layers(network: Any) -> list[Any]:
    return [network.get_layer(i) for i in range(network.num_layers)]


def attentions(trt: Any, network: Any) -> dict[str, Any]:
    """The network's attentions by the name of their node."""
    found = {}
    for layer in layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class, which hides `attention`
            # Not by output: with heads in the last axis, the output belongs to the layer that moves them there.
            found[layer.name.removesuffix(_ATTENTION)] = layer.attention
    return found


def layer_counts(network: Any) -> dict[str, dict[str, int]]:
    """The number of layers of each type, by the dtype of their first output."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for layer in layers(network):
        counts[layer.type.name][layer.get_output(0).dtype.name] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def _contract_problems(network: Any, spec: GraphSpec, capacity: int) -> Iterator[str]:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    yield from _tensor_problems("input", inputs, spec.all_inputs, capacity)
    yield from _tensor_problems("output", outputs, spec.all_outputs, capacity)


def _tensor_problems(what: str, found: list[Any], expected: tuple[TensorSpec, ...], capacity: int) -> Iterator[str]:
    tensors = {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in found}
    sizes = {"B": -1, "T": -1, "C": capacity}
    for spec in expected:
        wanted = (_DTYPES[spec.dtype], tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape))
        if spec.name not in tensors:
            yield f"the {what} {spec.name} is missing"
        elif tensors[spec.name] != wanted:
            yield f"the {what} {spec.name} is {_described(*tensors[spec.name])}, not {_described(*wanted)}"
    for name in tensors.keys() - {spec.name for spec in expected}:
        yield f"the {what} {name} is not part of the graph's contract"


def _described(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"


def _ignored_problems(network: Any, model: onnx.ModelProto) -> Iterator[str]:
    """Tensors that a node of the graph reads but no layer does.

    Many tensors of the graph are missing in the network, because the parser folds constants and shapes. Only tensors that
    the network has by name can be reported as unread.
    """
    read = {network.get_output(i).name for i in range(network.num_outputs)}
    held = {network.get_input(i).name for i in range(network.num_inputs)}
    for layer in layers(network):
        read |= {tensor.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i))}
        held |= {layer.get_output(i).name for i in range(layer.num_outputs)}
    for name in sorted(held & {value.name for value in model.graph.input} - read):
        yield f"the input {name} is ignored"
    for node in model.graph.node:
        for name in (name for name in node.input if name in held - read):
            yield f"{node.op_type} {node.name} reads {name}, which is ignored"


def _attention_problems(trt: Any, network: Any, model: onnx.ModelProto, spec: GraphSpec) -> Iterator[str]:
    """Attention over a ring must have the ring's mask, and lengths if the graph has them."""
    over_ring = any(state.ring for state in spec.state)
    made = attentions(trt, network)
    for node in (node for node in model.graph.node if node.op_type == "Attention"):
        attention, inputs = made.get(node.name), list(node.input) + [""] * 7
        if attention is None:
            yield f"Attention {node.name} did not become an attention layer"
            continue
        if inputs[_LENGTHS] and getattr(attention, "key_value_lengths", ...) is None:
            yield f"Attention {node.name} lost its lengths {inputs[_LENGTHS]}"
        if inputs[_MASK] and attention.mask is None:
            yield f"Attention {node.name} lost its mask {inputs[_MASK]}"
        elif over_ring and attention.mask is None:
            yield f"Attention {node.name} has no mask, and would read ring entries that were never written"
        elif attention.mask is not None:
            yield from _mask_problems(node.name, attention)


def _mask_problems(name: str, attention: Any) -> Iterator[str]:
    mask, keys = attention.mask, attention.get_input(1)  # [B, 1, T, C] bool, [B, H, C, D]
    if mask.dtype.name != "BOOL":
        yield f"the mask of Attention {name} is {mask.dtype.name}, not BOOL"
    if len(mask.shape) != 4 or mask.shape[3] != keys.shape[2]:
        yield f"the mask of Attention {name} is {list(mask.shape)}, and its keys are {list(keys.shape)}"


def _ring_problems(trt: Any, network: Any, spec: GraphSpec) -> Iterator[str]:
    """A ring is updated in place only if a KV cache layer writes it from its own past."""
    makers = {layer.get_output(i).name: layer for layer in layers(network) for i in range(layer.num_outputs)}
    for state in (state for state in spec.state if state.ring):
        maker = makers.get(state.present)
        if maker is None or maker.type != trt.LayerType.KV_CACHE_UPDATE:
            yield f"{state.present} does not come from a KV cache layer but from {maker and maker.type.name}"
        elif maker.get_input(0).name != state.past:
            yield f"{state.present} is an update of {maker.get_input(0).name}, not of {state.past}"
