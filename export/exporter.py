"""Exports one graph of a bundle: called by `export.build` and `bench.codec`.

The graph is traced, its weights are rounded to the chosen precision, and written one tensor at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import Tensor, nn

from pplex.export import graph, weights
from pplex.export.awq import Fold, Folding
from pplex.export.calibration import Calibration, needs_calibration, uses_awq
from pplex.export.checkpoint import Checkpoint
from pplex.export.compensation import compensated
from pplex.export.int8_rings import ATTENTIONS, ring_scales
from pplex.export.layers import RingAttention
from pplex.export.moments import Moments
from pplex.export.quantize import BITS, FP8_MAX, SCALE_DTYPE, Quantized, pack_int4, to_fp8, to_int
from pplex.export.storage import (
    IR_TYPES,
    Storage,
    dequantize_in_graph,
    quantize_input_in_graph,
    storages,
)
from pplex.export.temporal import Temporal
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import NO_FORMS, Forms
from pplex.runtime.graphs import GraphSpec, graph_specs
from pplex.runtime.precision import FP32

Progress = Callable[[int], None]


def export_graph(
    name: str,
    checkpoint: Checkpoint,
    config: ModelConfig,
    folder: Path,
    precision: Mapping[str, str] = FP32,
    calibration: Calibration | None = None,
    progress: Progress = lambda nbytes: None,
    compiled: bool = False,
    forms: Forms = NO_FORMS,
) -> Path:
    """Trace one graph and write it to `folder` with its weights; returns the ONNX file. `progress` gets the bytes written.
    `compiled`: the graph is for an engine, not for ONNX Runtime (see `Precision.form`). `forms`: those of a mixed precision.

    With a calibration, int4 uses AWQ and compensation; without, it rounds to nearest. Raises CalibrationError for fp8
    without a calibration.
    """
    needs_calibration({name: precision[name]}, calibration is not None, compiled)
    spec, stored = graph_specs(config, precision)[name], storages(name, config, precision, compiled, forms)
    masked = compiled and name == "temporal"  # the other graphs are the same for engines
    scales = dict(ring_scales(calibration, config)) if config.int8_rings and name == "temporal" else {}
    model = _traced(spec, config, weights.activations(name, precision), masked).clone()
    for parameter, storage in stored.items():
        dequantize_in_graph(model, parameter, storage)
        if storage.dtype == "float8_e4m3fn":
            quantize_input_in_graph(model, parameter)
    table = weights.sources(name, config, checkpoint)
    folds: dict[str, Fold] = {}
    if calibration is not None and uses_awq(precision[name], compiled):
        folds = Folding(name, lambda matrix: table[matrix].read(checkpoint), calibration, stored).folds(config)

    def tensors() -> Iterator[tuple[str, ir.TensorProtocol]]:
        for parameter, shaped in weights.parameters(name, config, precision).items():
            read = _Reader(table[parameter], checkpoint, folds.get(parameter, Fold()), progress)
            if parameter in stored:
                moments = calibration.moments(name, parameter) if calibration else None
                yield from _quantized(parameter, stored[parameter], read, moments, signed=not compiled)
                if stored[parameter].dtype == "float8_e4m3fn":
                    assert calibration is not None
                    yield _input_scale(parameter, calibration.largest[f"{name}.{parameter}"])
            else:
                yield parameter, _plain(parameter, shaped, read)
        for parameter, scale in scales.items():
            yield parameter, graph.lazy_weight(parameter, partial(_same, scale), ir.DataType.FLOAT, tuple(scale.shape))

    path = folder / f"{name}.onnx"
    graph.save(model, spec, dict(tensors()), path)
    return path


@cache
def _traced(spec: GraphSpec, config: ModelConfig, dtype: torch.dtype, masked: bool) -> ir.Model:
    """The graph without its weights. It is the same for all precisions with the same activation dtype.

    `masked`: see `Temporal`.
    """
    module: Callable[..., nn.Module] = weights.MODULES[spec.name]
    if spec.name == "temporal":
        module = partial(Temporal, masked=masked, attention=ATTENTIONS.get(config.kv_cache, RingAttention))
    return graph.trace(spec, module, config, dtype)


class _Reader:
    """A parameter read from the checkpoint and folded, in float32."""

    def __init__(self, source: weights.ParameterSource, checkpoint: Checkpoint, fold: Fold, progress: Progress):
        self.source, self.checkpoint, self.fold, self.progress = source, checkpoint, fold, progress

    def __call__(self) -> Tensor:
        return self.fold(self.source.read(self.checkpoint))


def _plain(name: str, shaped: Tensor, read: _Reader) -> ir.LazyTensor:
    def load() -> Tensor:
        tensor = read().to(shaped.dtype)
        read.progress(tensor.nbytes)
        return tensor

    return graph.lazy_weight(name, load, from_torch_dtype(shaped.dtype), tuple(shaped.shape))


def _quantized(
    name: str, storage: Storage, read: _Reader, moments: Moments | None, signed: bool
) -> Iterator[tuple[str, ir.LazyTensor]]:
    """A weight's values and its scale. Writing the first computes both, and keeps the other until it is written."""
    found: list[Quantized] = []
    if moments is not None and read.fold.rows is not None:
        moments = moments.divided(read.fold.rows)

    def once() -> Quantized:
        if found:
            return found.pop()
        found.append(rounded(read(), storage, moments, signed))
        return found[0]

    def values() -> Tensor:
        quantized = once().values
        stored = pack_int4(quantized) if storage.dtype == "int4" else quantized
        read.progress(stored.nbytes)
        return stored

    def scale() -> Tensor:
        found_scale = once().scale
        read.progress(found_scale.nbytes)
        return found_scale

    yield f"{name}.values", graph.lazy_weight(f"{name}.values", values, IR_TYPES[storage.dtype], storage.shape)
    scale_name, scale_type = f"{name}.scale", from_torch_dtype(SCALE_DTYPE)
    yield scale_name, graph.lazy_weight(scale_name, scale, scale_type, storage.scale_shape)


def rounded(weight: Tensor, storage: Storage, moments: Moments | None, signed: bool) -> Quantized:
    """A weight [K, N], already folded, as a graph stores it. `moments`: of its input, if there is a calibration.

    `signed`: int4 may have negative scales. TensorRT's documentation asks for positive ones.
    """
    if storage.dtype == "float8_e4m3fn":
        return to_fp8(weight)
    bits, signed = BITS[storage.dtype], signed and storage.dtype == "int4"
    if moments is None:
        return to_int(weight, bits, storage.block, signed=signed)
    return compensated(weight, bits, storage.block, moments, signed)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _input_scale(name: str, largest: float) -> tuple[str, ir.LazyTensor]:
    scale = torch.tensor(max(largest / FP8_MAX, 1e-6), dtype=SCALE_DTYPE)
    scale_name = f"{name}.input_scale"
    return scale_name, graph.lazy_weight(scale_name, lambda: scale, from_torch_dtype(SCALE_DTYPE), ())
