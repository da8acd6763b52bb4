"""Compiles one graph of a bundle into an engine for one GPU, with TensorRT-RTX or TensorRT. Called by `export.build`."""

import json
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from pplex.engines.kernels import Kernel, computing_only, kernels
from pplex.engines.library import (
    DEFAULT_OPTIONS,
    EngineOptions,
    LoadedLibrary,
    configure,
    layers_path,
    open_library,
    timing_cache,
)
from pplex.engines.network import allow_plain_attention, check_network, layer_counts, limit_attention, parse
from pplex.engines.onnx_file import weights_by_dtype
from pplex.engines.profiles import profiles
from pplex.runtime.errors import BuildError
from pplex.runtime.gpus import TENSORRT_RTX, Gpu
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.trt_library import BuilderMessages

# An engine may hold this much in addition to the graph's own weights: folded constants, padding.
_SPARE_NBYTES = 16 << 20


def compile_engine(
    path: Path,
    spec: GraphSpec,
    capacity: int,
    gpu: Gpu,
    slots: int,
    out: Path,
    options: EngineOptions = DEFAULT_OPTIONS,
) -> None:
    """Compile the ONNX file `path` to the engine file `out`.

    It takes B = 1 to `slots`, and T = 1 to 256 for a graph with T steps: see `engines.profiles`.
    A record of the layers is written to `layers_path(out)`. Raises BuildError if the library
    is missing, needs a GPU that this machine lacks, refuses the graph, changes it, or makes a slow engine of it.
    """
    library = open_library(gpu)
    messages = BuilderMessages(library.trt)
    builder = library.trt.Builder(messages.logger)
    network, model = parse(library, builder, messages.logger, path, capacity)
    limit_attention(library.trt, network, model)
    check_network(library, network, model, spec, capacity)
    allow_plain_attention(library.trt, network)
    config = builder.create_builder_config()
    configure(library, config, gpu, options)
    for shapes in profiles(spec, capacity, slots):
        profile = builder.create_optimization_profile()
        for tensor, sizes in shapes.items():
            profile.set_shape(tensor, *sizes)
        config.add_optimization_profile(profile)
    with timing_cache(library, config, out.parent):
        _write_engine(library, builder, network, config, messages, out, f"{path.name} for sm_{gpu.sm}")
    held = max(_figures(messages, "Total Weights Memory") or [out.stat().st_size])
    _check_weights(library, path.name, model, held)
    found = kernels(out) if library.kind == TENSORRT_RTX else []
    _check_dequantization(library, path.name, model, found)
    facts = {
        "library": library.made_with,
        "layers": layer_counts(network),
        "weights": weights_by_dtype(model),
        "held_nbytes": held,
        "scratch_nbytes": _figures(messages, "Total Activation Memory"),
    }
    layers_path(out).write_text(json.dumps(facts, indent=2) + "\n")


def engine_entry(engine: Path, gpu: Gpu, slots: int) -> dict[str, Any]:
    """The manifest's entry for an engine that `compile_engine` has written."""
    made_with = json.loads(layers_path(engine).read_text())["library"]
    return {
        "kind": gpu.kind, "file": engine.name, "gpu": gpu.name, "sm": gpu.sm, "slots": slots, "made_with": made_with,
    }  # fmt: skip


def _figures(messages: BuilderMessages, name: str) -> list[int]:
    """The bytes that the library reported for `name`: one value for each profile, one for all, or none."""
    found = [re.match(rf"{name}: (\d+) bytes", line) for line in messages.lines]
    return [int(match[1]) for match in found if match]


def _write_engine(
    library: LoadedLibrary, builder: Any, network: Any, config: Any, messages: BuilderMessages, out: Path, what: str
) -> None:
    """Build the engine. The library writes it to `out` in pieces, so it is never complete in our memory."""
    failures: list[OSError] = []
    done = False
    try:
        with out.open("wb") as file:
            writer = _writer(library.trt, file, failures)
            done = builder.build_serialized_network_to_stream(network, config, writer)
    except OSError as error:  # closing the file writes its last bytes
        failures.append(error)
    if failures or not done:  # the library ignores a failed write
        out.unlink(missing_ok=True)
        raise BuildError(f"{library} cannot build {what}: {failures[0] if failures else messages.first_error()}")


def _writer(trt: Any, file: BinaryIO, failures: list[OSError]) -> Any:
    """The library's writer for an engine. It records errors, because exceptions cannot pass through the library."""

    class Writer(trt.IStreamWriter):
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failures.append(error)
                return 0

    return Writer()


def _check_weights(library: LoadedLibrary, name: str, model: onnx.ModelProto, held: int) -> None:
    """Raises BuildError if the engine holds more bytes of weights than the graph: some are widened, or stored twice."""
    stored = sum(weights_by_dtype(model).values())
    if held > 1.1 * stored + _SPARE_NBYTES:
        raise BuildError(
            f"{library} made {held:,} bytes of weights from the {stored:,} of {name}: some are stored twice, or widened, "
            f"for example by a Cast right after a weight. Put the Cast after the product."
        )


def _check_dequantization(library: LoadedLibrary, name: str, model: onnx.ModelProto, found: list[Kernel]) -> None:
    """Raises BuildError if kernels only dequantize weights: each step would write them in 16 bits and read them again."""
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    weights = {node.name: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    alone = {node: 2 * math.prod(dims.get(weights[node], ())) for node in computing_only(found, weights.keys())}
    if sum(alone.values()) > _SPARE_NBYTES:
        raise BuildError(
            f"{library} dequantizes {len(alone)} matrices of {name}, such as {weights[min(alone)]}, into "
            f"{sum(alone.values()):,} bytes in each step: it cannot multiply this format. Choose another --precision."
        )
