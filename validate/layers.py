"""Compares every layer of a bundle's graphs with the torch modules in float32: called by the graphs section.

Each layer of the language model has its own error: the float32 layer gets the input of the engine's layer, so an error shows
in the layer that causes it. The codec's precision is float32 or close to it, and its errors accumulate from the input on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint
from pplex.export.depth import Depth, DepthStep
from pplex.export.layers import Linear, embed
from pplex.export.mimi import CausalConv, Quantizer, TransposedConv
from pplex.export.synth_codec import stream_codec
from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.stages import Stages
from pplex.validate.golden import TIE_TOLERANCE, force_step
from pplex.validate.probes import CODEBOOK, PROBE
from pplex.validate.reference import Half, WholeTemporal

Tensors = dict[str, Tensor]
Past = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LayerError:
    """Errors of one layer relative to the float32 values, root mean square over root mean square.

    own: error on the engine's own input; None if not measured. accumulated: error since the graph's inputs.
    channel: own error of the worst channel. largest, mean (absolute) and cosine: compare the outputs.
    """

    layer: str
    own: float | None
    accumulated: float
    largest: float
    mean: float
    cosine: float
    channel: float | None = None


def compare_layer(
    layer: str, got: Tensor, expected: Tensor, own: float | None = None, channel: float | None = None
) -> LayerError:
    """Errors of a layer's outputs; all have the same shape."""
    got, expected = got.double().flatten(), expected.double().flatten()
    difference = (got - expected).abs()
    norm = float(got.norm() * expected.norm())
    cosine = float(got @ expected) / norm if norm else float(got.equal(expected))
    return LayerError(
        layer, own, relative_error(got, expected), float(difference.max()), float(difference.mean()), cosine, channel
    )


def relative_error(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|; infinite if a value of `got` is not finite."""
    got, expected = got.double(), expected.double()
    if not torch.isfinite(got).all():
        return float("inf")
    distance, size = float((got - expected).norm()), float(expected.norm())
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def channel_error(got: Tensor, expected: Tensor) -> float:
    """The largest |got - expected| / |expected| of a channel (last axis); |expected| counts as its median at least."""
    got, expected = (x.double().flatten(0, -2) for x in (got, expected))  # [n, channels]
    if not torch.isfinite(got).all():
        return float("inf")
    size = expected.norm(dim=0)
    return float(((got - expected).norm(dim=0) / size.clamp(min=float(size.median()) or 1.0)).max())


# The language model.


@dataclass(frozen=True)
class LanguageTrace:
    """Outputs of an engine's layers in T forced steps, [T, ...] by layer, and the graphs' outputs by name."""

    temporal: Tensors
    depth: Tensors


def trace_language(stages: Stages, codes: Tokens) -> LanguageTrace:
    """Run T steps in slot 0: step t gets column t of codes [T + 1, 17], and its tokens are forced to column t + 1."""
    kept = {graph: [name for name in stages.tensors(graph) if _kept(name)] for graph in ("temporal", "depth")}
    rows: dict[str, dict[str, list[npt.NDArray[Any]]]] = {g: {name: [] for name in names} for g, names in kept.items()}
    for step in range(len(codes) - 1):
        force_step(stages, codes, step)
        for graph in ("temporal", "depth"):
            stages.run(graph, 1)
            for name in kept[graph]:
                rows[graph][name].append(stages.tensors(graph)[name].copy().reshape(-1))
    shapes = {graph: {name: stages.tensors(graph)[name].shape for name in names} for graph, names in kept.items()}
    made = {
        graph: {
            name.removeprefix(PROBE): torch.from_numpy(np.stack(values)).reshape(len(values), *shapes[graph][name][1:])
            for name, values in found.items()
        }
        for graph, found in rows.items()
    }
    return LanguageTrace(made["temporal"], made["depth"])


def _kept(name: str) -> bool:
    return name.startswith(PROBE) or name in ("hidden", "text_logits", "audio_logits")


@torch.inference_mode()
def temporal_errors(
    trace: LanguageTrace, checkpoint: Checkpoint, config: ModelConfig, codes: Tokens
) -> list[LayerError]:
    """Errors of attention and gated block of each temporal layer, in order, for the trace of codes [T + 1, 17]."""
    steps, walk = len(codes) - 1, _Walk({name: x.flatten(1)[None] for name, x in trace.temporal.items()})  # [1, T, dim]
    whole = WholeTemporal(checkpoint, config, steps, config.temporal.capacity)
    walk.start("embedding", whole.embed(torch.from_numpy(codes[:-1]), torch.zeros(steps, config.temporal.dim)))
    for i, (attend, feed) in enumerate(whole.layers()):
        walk.half(f"layers.{i}.attention", attend, attend)
        walk.half(f"layers.{i}.gating", feed, feed)
    walk.end("out_norm", whole.hidden, walk.got["hidden"][0])
    walk.end("text_linear", whole.text_logits, walk.got["text_logits"][0])
    return walk.errors


@torch.inference_mode()
def depth_errors(trace: LanguageTrace, checkpoint: Checkpoint, config: ModelConfig, codes: Tokens) -> list[LayerError]:
    """Errors of attention and gated block of each layer of each depth step, in order, for the engine's hidden states."""
    module = weights.load("depth", checkpoint, config)
    assert isinstance(module, Depth)
    hidden, previous = trace.temporal["hidden"], torch.from_numpy(codes[1:].clip(min=0))
    walk, layers = (
        _Walk({name: x.flatten(1) for name, x in trace.depth.items()}),
        range(config.depth.layers),
    )  # [T, dim]
    past, own_past = ([Past() for _ in layers] for _ in range(2))
    for k, step in enumerate(module.steps):
        assert isinstance(step, DepthStep)
        walk.start(f"steps.{k}.input", step.input(hidden) + embed(step.emb, previous[:, k]))
        for i in layers:
            name = f"steps.{k}.layers.{i}"
            attend, own_attend = (partial(_attend, module, step, i, seen[i]) for seen in (past, own_past))
            walk.half(f"{name}.attention", attend, own_attend)
            feed = nn.Sequential(module.norm2[i], step.gating[i])
            walk.half(f"{name}.gating", feed, feed)
        walk.end(f"steps.{k}.output", step.output, trace.depth["audio_logits"][:, k])
    return walk.errors


def _attend(module: Depth, step: DepthStep, layer: int, past: Past, x: Tensor) -> Tensor:
    return module.attend(step, layer, module.norm1[layer](x)[:, None], past).squeeze(1)


class _Walk:
    """Computes layers in order in float32, for two residual streams: the float32 one, and the engine's (`got` by layer).

    A compiled engine gives only its graph's outputs. Layers that are not in `got` are skipped, and the next layer then has
    no own error.
    """

    def __init__(self, got: Tensors):
        self.got, self.errors = got, list[LayerError]()
        self._before: Tensor | None = None

    def start(self, layer: str, x: Tensor) -> None:
        """Start the residual stream with x."""
        self._x, got = x, self.got.get(layer)
        self._add(layer, got, x, got, x)

    def half(self, layer: str, adds: Half, own_adds: Half) -> None:
        """Apply a half layer: `adds` to the float32 stream, `own_adds` to the engine's."""
        self._x = self._x + adds(self._x)
        got, before = self.got.get(layer), self._before
        if got is None or before is None:
            self._add(layer, got, self._x)
        else:  # compare the additions: the error of a small addition would not show in a large stream
            self._add(layer, got, self._x, got - before, own_adds(before))

    def end(self, layer: str, makes: Half, got: Tensor) -> None:
        """Apply a layer that replaces the residual stream."""
        self._x = makes(self._x)
        self._add(layer, got, self._x, got, None if self._before is None else makes(self._before))

    def _add(
        self,
        layer: str,
        got: Tensor | None,
        expected: Tensor,
        own_got: Tensor | None = None,
        own_expected: Tensor | None = None,
    ) -> None:
        """`own_*`: outputs for the engine's own stream, if known."""
        self._before = got
        if got is None:
            return
        if own_got is None or own_expected is None:
            self.errors.append(compare_layer(layer, got, expected))
        else:
            own, channel = relative_error(own_got, own_expected), channel_error(own_got, own_expected)
            self.errors.append(compare_layer(layer, got, expected, own, channel))


# The codec.


def trace_codec(stages: Stages, graph: str, inputs: Pcm | Tokens) -> Tensors:
    """Outputs [F, ...] by layer of a codec engine for inputs [F, ...], frame by frame in slot 0."""
    spec = stages.engines[graph].spec
    given, tensors = stages.tensors(graph)[spec.inputs[0].name], stages.tensors(graph)
    rows: dict[str, list[Tensor]] = {tensor.name: [] for tensor in spec.outputs}
    stages.active[0] = True
    for frame in inputs:
        given[0] = frame
        stages.run(graph, 1)
        for name, found in rows.items():
            found.append(torch.from_numpy(tensors[name][0].copy()))
    return {name.removeprefix(PROBE): torch.stack(found) for name, found in rows.items()}


@torch.inference_mode()
def codec_errors(
    trace: Tensors, graph: str, checkpoint: Checkpoint, config: ModelConfig, inputs: Pcm | Tokens
) -> list[LayerError]:
    """Errors of every filter, matrix and codebook of a codec graph, in order, for a trace of inputs [F, ...]."""
    module = weights.load(graph, checkpoint, config)
    with _watching(module) as seen:
        given = torch.from_numpy(inputs[:, None] if graph == "mimi_encode" else inputs)[None]
        output = stream_codec(graph, config, module, given)[0]
    expected = {name: torch.cat(found) for name, found in seen.items()}
    quantizer = module.quantizer
    assert isinstance(quantizer, Quantizer)
    if graph == "mimi_decode":
        expected |= {f"{CODEBOOK}{i}": F.embedding(given[0, :, i], quantizer.codebooks[i]) for i in range(CODEBOOKS)}
    errors = [compare_layer(name, x, expected[name]) for name, x in trace.items() if name in expected]
    if graph == "mimi_decode":
        return [*errors, compare_layer("pcm", trace["pcm"], output)]
    return errors + (_codebook_errors(quantizer, trace) if errors else [_different_codes(trace["codes"], output)])


@contextmanager
def _watching(module: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the output of each filter and matrix of a module, call by call."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str, part: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.setdefault(name, []).append(_convolved(part, given[0]) if isinstance(part, TransposedConv) else output)

    watched = [
        (n, part) for n, part in module.named_modules() if isinstance(part, Linear | CausalConv | TransposedConv)
    ]
    hooks = [part.register_forward_hook(partial(hook, name)) for name, part in watched]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def _convolved(part: TransposedConv, x: Tensor) -> Tensor:
    """The output of the convolution's ONNX node; the overlap is added after it."""
    conv = part.conv
    return F.conv_transpose1d(x, part.weight, None, conv.stride, groups=conv.inputs if conv.depthwise else 1)


def _different_codes(got: Tensor, expected: Tensor) -> LayerError:
    """The share of different codes, for engines without probed layers."""
    share = float((got != expected).double().mean())
    return LayerError("codes", None, share, share, share, 1 - share)


def _codebook_errors(quantizer: Quantizer, trace: Tensors) -> list[LayerError]:
    """For each codebook, the share of frames in which another entry is nearer to the residual. Ties do not count."""
    codes, errors = trace["codes"], list[LayerError]()
    rest = trace["quantizer.semantic"]
    for i, book in enumerate(quantizer.codebooks):
        if i == 1:
            rest = trace["quantizer.acoustic"]
        distance = torch.cdist(rest.double(), book.double()).square()
        taken = distance.gather(1, codes[:, i : i + 1])[:, 0]
        wrong = float((taken - distance.min(1).values > TIE_TOLERANCE * taken.clamp(min=1e-12)).double().mean())
        errors.append(LayerError(f"{CODEBOOK}{i}", wrong, wrong, wrong, wrong, 1 - wrong))
        rest = rest - F.embedding(codes[:, i], book)
    return errors
