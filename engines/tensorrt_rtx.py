"""Compiling a bundle's graph with TensorRT-RTX, which needs no GPU to build for a named one."""

from pathlib import Path
from typing import Any

import onnx

from pplex.runtime.errors import BuildError
from pplex.runtime.graphs import MAX_STEPS, GraphSpec

INSTALL = "pip install 'pplex-export[export,rtx]'"


def build_engine(path: Path, spec: GraphSpec, capacity: int, sm: int, slots: int = 8) -> bytes:
    """Compile one ONNX graph for a compute capability (89 for sm_89); returns the serialized engine.

    B runs from 1 to `slots`. A graph with T steps gets two profiles: T = 1 for decoding, T <= 256 for priming. Raises
    BuildError with the library's own words.
    """
    trt = _library()
    messages = _Messages(trt)
    builder = trt.Builder(messages.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(_with_capacity(path, capacity), str(path)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(f"TensorRT-RTX {trt.__version__} does not take {path.name}: {errors}")
    _allow_plain_attention(trt, network)
    config = builder.create_builder_config()
    for steps in ((1, 1, 1), (2, MAX_STEPS // 4, MAX_STEPS)) if _has_steps(spec) else ((1, 1, 1),):
        config.add_optimization_profile(_profile(builder, spec, capacity, slots, steps))
    config.num_compute_capabilities = 1
    config.set_compute_capability(_capability(trt, sm), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(
            f"TensorRT-RTX {trt.__version__} cannot build {path.name} for sm_{sm}: {messages.last_error()}"
        )
    return bytes(engine)


def _library() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise BuildError(f"TensorRT-RTX is not installed: {INSTALL}") from error
    return tensorrt_rtx


class _Messages:
    """The library's errors, kept for our own message instead of being printed."""

    def __init__(self, trt: Any):
        errors: list[str] = []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(message)

        self.logger, self._errors = Logger(), errors

    def last_error(self) -> str:
        return self._errors[-1] if self._errors else "no reason given"


def _with_capacity(path: Path, capacity: int) -> bytes:
    """The graph with its symbolic ring capacity C fixed: TensorRT's KV cache layer wants it static."""
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "C":
                dim.dim_value = capacity
    return model.SerializeToString()


def _allow_plain_attention(trt: Any, network: Any) -> None:
    """Let attention fall back to separate kernels where no fused one fits, as in float32 or for small heads."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class, which hides `attention`
            layer.attention.decomposable = True


def _has_steps(spec: GraphSpec) -> bool:
    return any("T" in tensor.shape for tensor in spec.inputs)


def _profile(builder: Any, spec: GraphSpec, capacity: int, slots: int, steps: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in spec.all_inputs:
        ends = ({"B": batch, "T": t, "C": capacity} for batch, t in zip((1, 1, slots), steps, strict=True))
        profile.set_shape(
            tensor.name, *([end.get(d, d) if isinstance(d, str) else d for d in tensor.shape] for end in ends)
        )
    return profile


def _capability(trt: Any, sm: int) -> Any:
    capability = getattr(trt.ComputeCapability, f"SM{sm}", None)
    if capability is None:
        named = sorted(name for name in dir(trt.ComputeCapability) if name.startswith("SM"))
        raise BuildError(f"TensorRT-RTX {trt.__version__} builds for {', '.join(named)}, not for sm_{sm}.")
    return capability
