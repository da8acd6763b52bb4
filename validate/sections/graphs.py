"""The graphs section: does every layer of every graph give the same result as its torch module?

Called by `validate.validation`.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pplex.export.checkpoint import Checkpoint
from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.backend import Backend, graphs_run_on_processor
from pplex.runtime.bundle import Bundle
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS
from pplex.runtime.stages import Stages
from pplex.validate.layers import LayerError, codec_errors, depth_errors, temporal_errors, trace_codec, trace_language
from pplex.validate.probes import CODEBOOK, can_be_probed, probe
from pplex.validate.report.schema import Measure, Plot, Section, Series, Table, Tolerance
from pplex.validate.sections.streaming import Where
from pplex.validate.sections.window import window_measure

CAPACITY = 64  # of the ring here: steps soon pass its end. Graphs accept any length
STEPS, FRAMES = 160, 160  # of the language model and of the codec, past the end of both kinds of ring

_REASONS = {
    "fp32": "float32 sums in another order reach 1e-6",
    "fp16": "over twice the error of a half layer that adds little to a residual stream with 11 bits",
    "bf16": "over twice the error of a half layer that adds little to a residual stream with 8 bits",
    "fp8": "over twice the error of a layer whose inputs and weights have 4 significant bits",
    "int8": "over twice the error of a layer with 8-bit weights in blocks of 32 and a residual stream in float16",
    "int4": "over twice the error of a layer with 4-bit weights in blocks of 32",
    "mixed": "over twice the error of a layer whose weights all have 4 bits",
}
_INT8_RINGS = "; and that of rings in int8"


def graph_section(
    bundle: Bundle,
    runnable: Bundle,
    checkpoint: Checkpoint,
    codes: Tokens,
    pcm: Pcm,
    device: Where,
    threads: int | None,
) -> Section:
    """Compare every layer of every graph for a token history [T, 17] and user audio [F, 1920].

    `runnable`: `bundle`, or its replacement on this machine.
    """
    probed, steps, frames = can_be_probed(bundle), len(codes[:STEPS]), len(pcm[:FRAMES])
    found, window = trace_layers(runnable, checkpoint, codes[: STEPS + 1], pcm[:FRAMES], device, threads)
    return Section(
        "graphs",
        "Graphs",
        _QUESTION,
        (*_measures(bundle, found, probed), window),
        tuple(_table(graph, errors) for graph, errors in found.items()),
        tuple(_plot(graph, bundle, errors) for graph, errors in found.items()) if probed else (),
        _notes(bundle, steps, frames) if probed else (_COMPILED.format(steps=steps, frames=frames),),
    )


_QUESTION = "Does every layer give the same result as in float32?"
_COMPILED = (
    "Compiled engines give only their outputs, so layers cannot be compared ({steps} forced steps, {frames} frames of "
    "audio). The other sections judge the accumulated rounding. To compare layers, validate a bundle of ONNX graphs."
)


def _notes(bundle: Bundle, steps: int, frames: int) -> tuple[str, ...]:
    return (
        f"A copy of each graph has every layer as an output, and runs on the bundle's own engine: {steps} forced steps, "
        f"past the end of a ring with {_capacity(bundle)} entries, and {frames} frames of audio.",
        "The language model shows each layer's own error: the float32 layer gets the input of the engine's layer.",
        "In the codec, errors accumulate from the samples or the codes on.",
    )


def trace_layers(
    bundle: Bundle, checkpoint: Checkpoint, codes: Tokens, pcm: Pcm, device: Where, threads: int | None
) -> tuple[dict[str, list[LayerError]], Measure]:
    """Errors of all layers in order, by graph, and the measure of the ring's window."""
    stack = replace(bundle.config.temporal, capacity=_capacity(bundle))
    short = replace(bundle, config=replace(bundle.config, temporal=stack))
    with tempfile.TemporaryDirectory() as scratch:
        shown = probe(short, Path(scratch), _on_processor(device)) if can_be_probed(bundle) else short
        stages = Stages(shown, slots=1, threads=threads, device=device, logits=True)
        language = trace_language(stages, codes)
        window = window_measure("graphs.temporal.window", stages, codes, short.config.temporal.capacity)
        encoder = trace_codec(stages, "mimi_encode", pcm)
        spoken = encoder["codes"].numpy()
        decoder = trace_codec(stages, "mimi_decode", spoken)
        del stages  # the reference needs the memory
    found = {
        "mimi_encode": codec_errors(encoder, "mimi_encode", checkpoint, short.config, pcm),
        "temporal": temporal_errors(language, checkpoint, short.config, codes),
        "depth": depth_errors(language, checkpoint, short.config, codes),
        "mimi_decode": codec_errors(decoder, "mimi_decode", checkpoint, short.config, spoken),
    }
    return {graph: found[graph] for graph in GRAPH_NAMES}, window


def _on_processor(device: Where) -> bool:
    return device.device.name == "cpu" if isinstance(device, Backend) else graphs_run_on_processor(device)


def _capacity(bundle: Bundle) -> int:
    """Graphs accept a ring of any length; an engine is compiled for one length."""
    capacity = bundle.config.temporal.capacity
    return min(CAPACITY, capacity) if can_be_probed(bundle) else capacity


def _judged(error: LayerError) -> float:
    return error.accumulated if error.own is None else error.own


def _measures(bundle: Bundle, found: dict[str, list[LayerError]], probed: bool) -> Iterator[Measure]:
    for graph, errors in found.items():
        if probed:
            yield _layer_measure(graph, bundle, errors)
        if probed and graph in LANGUAGE_GRAPHS:
            yield _channel_measure(graph, bundle, errors)
        worst = max((error for error in errors if _is_output(error.layer)), key=lambda error: error.accumulated)
        what = "Largest error of a graph's output on the engine's own inputs; for codes, the share of different codes."
        yield Measure(f"graphs.{graph}.output_error", worst.accumulated, "", what, None, worst.layer)


def _is_output(layer: str) -> bool:
    return (
        layer in ("out_norm", "text_linear", "pcm", "codes") or layer.endswith(".output") or layer.startswith(CODEBOOK)
    )


def _layer_measure(graph: str, bundle: Bundle, errors: list[LayerError]) -> Measure:
    """The first layer above its tolerance, or else the worst layer."""
    limit = bundle.specs[graph].tolerances["layer_error"]
    first = next((error for error in errors if not _judged(error) <= _limit(error, limit)), None)
    shown = first or max(errors, key=lambda error: _judged(error))
    what = "Error of the first layer above its tolerance" if first else "Largest error of a layer"
    own = " on its own input, relative to what it adds" if graph in LANGUAGE_GRAPHS else ", relative to its output"
    reason = _REASONS[bundle.precision[graph]] + (_INT8_RINGS if bundle.specs[graph].int8_rings else "")
    if shown.layer.startswith(CODEBOOK) and first is not None:
        limit, reason = 0.0, "the entry must be the nearest, except for ties"
    return Measure(
        f"graphs.{graph}.layer_error", _judged(shown), "", f"{what}{own}.", Tolerance(limit, reason), shown.layer
    )


def _channel_measure(graph: str, bundle: Bundle, errors: list[LayerError]) -> Measure:
    """Like `_layer_measure`, for each layer's worst channel: one wrong column in 4,096 hardly changes a layer's error."""
    limit = bundle.specs[graph].tolerances["channel_error"]
    known = [error for error in errors if error.channel is not None]
    first = next((error for error in known if not (error.channel or 0) <= limit), None)
    shown = first or max(known, key=lambda error: error.channel or 0)
    what = "Largest own error of one channel of a layer, relative to the addition to that channel, or to the median channel."
    reason = "above the value of random models; a column with a doubled or missing scale gives 1"
    return Measure(f"graphs.{graph}.channel_error", shown.channel, "", what, Tolerance(limit, reason), shown.layer)


def _limit(error: LayerError, limit: float) -> float:
    return 0.0 if error.layer.startswith(CODEBOOK) and error.own is not None else limit


def _table(graph: str, errors: list[LayerError]) -> Table:
    columns = ("layer", "own error", "accumulated", "largest", "mean", "cosine")
    rows = tuple((e.layer, e.own, e.accumulated, e.largest, e.mean, e.cosine) for e in errors)
    return Table(f"{graph}, layer by layer", columns, rows)


def _plot(graph: str, bundle: Bundle, errors: list[LayerError]) -> Plot:
    x = tuple(float(i) for i in range(len(errors)))
    series = [Series("accumulated", x, tuple(e.accumulated for e in errors))]
    if graph in LANGUAGE_GRAPHS:
        series.append(Series("own", x, tuple(float(e.own or 0) for e in errors)))
    limit = bundle.specs[graph].tolerances["layer_error"]
    series.append(Series("tolerance", (x[0], x[-1]), (limit, limit)))
    return Plot(f"{graph}: error by layer", "line", "layer", "relative error", tuple(series), log_y=True)
