"""Finds how strongly each matrix's output acts on the tokens' distributions: called by `export.sensitivity`.

A small error d of a step's logits changes its distribution p by a divergence of d F d / 2, with F = diag(p) - p p' (Fisher's
information). A probe v is a random vector with the covariance F, so d F d is the mean of (v d)^2. The gradient g of
v at the output of a matrix carries this to any error e of that output: the divergence is the mean of (sum of g e)^2 / 2.

The conversations run forward once, and one probe of all steps runs back, which takes gradients of activations only. One
layer's weights are in memory at a time, or the depth transformer's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.calibration import history_place
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import ForcedHistory
from pplex.export.depth import Depth
from pplex.export.layers import Linear, even_noise
from pplex.export.temporal import Temporal, TemporalLayer
from pplex.runtime.config import ModelConfig

STREAMS = ("text", "audio")
DEPTH_ROWS = 64  # steps of each conversation whose audio is probed
_SEED = 24


@dataclass(frozen=True)
class Use:
    """How a conversation uses a matrix: its inputs [n, K], and each stream's gradients at them and at its outputs [n, N]."""

    inputs: Tensor
    of_inputs: Mapping[str, Tensor]
    of_outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Probed:
    """Matrices of a graph in float32 or 16 bits, with their uses by all conversations. `layers`: whose matrices they are."""

    graph: str
    layers: range
    matrices: Mapping[str, Tensor]
    uses: Mapping[str, Sequence[Use]]


@dataclass
class _Conversation:
    """One conversation on its way through the layers: their inputs [1, T, dim], and each stream's gradient [1, T, dim].

    rows: the steps whose next tokens are known; audio_rows: those of them whose audio is probed.
    """

    target: Tensor
    place: tuple[Tensor | None, ...]
    inputs: list[Tensor]
    rows: Tensor
    audio_rows: Tensor
    random: torch.Generator
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Counts:
    """The number of distributions of a conversation that were probed, by stream."""

    text: int
    audio: int


def counted(config: ModelConfig, item: ForcedHistory) -> Counts:
    """What `probed` probes of a conversation."""
    known = _known(item)
    return Counts(len(known), len(_some(known)) * config.depth_steps)


def probed(
    checkpoint: Checkpoint, config: ModelConfig, items: Sequence[ForcedHistory], progress: Callable[[int], None]
) -> Iterator[Probed]:
    """All matrices of the language model: those of the depth graph, the text head, then the temporal layers, last first.

    `progress` gets the bytes of float32 weights read.
    """
    load = weights.PartLoader("temporal", checkpoint, config, progress)
    with torch.device("meta"):
        module = Temporal(config)
    with torch.no_grad():
        talks = _forward(module, load, config, items)
        yield _depth(checkpoint, config, module, talks, progress)
        yield _text_head(module, load, talks)
    for i in reversed(range(config.temporal.layers)):
        with torch.device("meta"):
            layer = TemporalLayer(config.temporal)
        load(layer, f"layers.{i}.")
        prefix = f"layers.{i}."
        uses: dict[str, list[Use]] = {}
        for talk in talks:
            x = talk.inputs[i].requires_grad_()
            with _recorded(layer) as seen:
                y = layer(x, *talk.place)[0]
            back = {stream: _back(y, x, seen, gradient) for stream, gradient in talk.gradients.items()}
            talk.gradients = {stream: of_x for stream, (of_x, _) in back.items()}
            talk.inputs.pop()
            for name, use in _uses(seen, {stream: found for stream, (_, found) in back.items()}).items():
                uses.setdefault(f"{prefix}{name}.weight", []).append(use)
        yield Probed("temporal", range(i, i + 1), _matrices(layer, prefix), uses)


def _forward(
    module: Temporal, load: weights.PartLoader, config: ModelConfig, items: Sequence[ForcedHistory]
) -> list[_Conversation]:
    """Run the conversations through all temporal layers; the last entry of `inputs` is then the last layer's output."""
    load(module, "text_emb")
    load(module, "audio_emb")
    talks = []
    for i, item in enumerate(items):
        x = module.embed_streams(item.codes[None]) + item.embedding
        rows, random = _known(item), torch.Generator().manual_seed(_SEED + i)
        place = history_place(x.shape[1], config)
        talks.append(_Conversation(item.target.clamp(min=0), place, [x], rows, _some(rows), random, {}))
    module.text_emb.data, module.audio_emb.data = torch.empty(0), torch.empty(0)
    for i in range(config.temporal.layers):
        with torch.device("meta"):
            layer = TemporalLayer(config.temporal)
        load(layer, f"layers.{i}.")
        for talk in talks:
            talk.inputs.append(layer(talk.inputs[-1], *talk.place)[0])
    load(module.out_norm, "out_norm.")
    return talks


def _depth(
    checkpoint: Checkpoint,
    config: ModelConfig,
    temporal: Temporal,
    talks: Sequence[_Conversation],
    progress: Callable[[int], None],
) -> Probed:
    """Probe the audio of some steps. Sets each conversation's gradient of it."""
    with torch.device("meta"):
        module = Depth(config)
    weights.PartLoader("depth", checkpoint, config, progress, keep_16_bits=True)(module, "")
    uses: dict[str, list[Use]] = {}
    for talk in talks:
        tokens = talk.target[talk.audio_rows]
        hidden = temporal.out_norm(talk.inputs[-1][0, talk.audio_rows]).requires_grad_()
        ones, noise = torch.ones(len(hidden)), even_noise(len(hidden), config.num_streams)
        with _recorded(module) as seen:
            forced = tokens[:, 1 : 1 + config.depth_steps]
            _, logits = module(hidden, tokens[:, 0], forced, *noise, ones, ones.long())
        of_hidden, found = _back(logits, hidden, seen, _probe(logits.detach(), talk.random))
        for name, use in _uses(seen, {"audio": found}).items():
            uses.setdefault(f"{name}.weight", []).append(use)
        _set_gradient(temporal, talk, "audio", talk.audio_rows, of_hidden)
    return Probed("depth", range(config.depth.layers), _matrices(module, ""), uses)


def _text_head(module: Temporal, load: weights.PartLoader, talks: Sequence[_Conversation]) -> Probed:
    """Probe the text of all known steps. Sets each conversation's gradient of it."""
    load(module.text_linear, "text_linear.")
    weight, uses = module.text_linear.weight.data, list[Use]()
    for talk in talks:
        hidden = module.out_norm(talk.inputs[-1][0, talk.rows])
        probe = _probe(hidden @ weight, talk.random)
        of_hidden = probe @ weight.T
        uses.append(Use(hidden, {"text": of_hidden}, {"text": probe}))
        _set_gradient(module, talk, "text", talk.rows, of_hidden)
    for talk in talks:
        talk.inputs.pop()
    module.text_linear.weight.data = torch.empty(0)
    return Probed("temporal", range(0), {"text_linear.weight": weight}, {"text_linear.weight": uses})


def _set_gradient(module: Temporal, talk: _Conversation, stream: str, rows: Tensor, of_hidden: Tensor) -> None:
    """The gradient at the last layer's output, from that at the hidden states of some steps."""
    with torch.enable_grad():
        x = talk.inputs[-1].detach().requires_grad_()
        (talk.gradients[stream],) = torch.autograd.grad(module.out_norm(x[0, rows]), x, of_hidden)


def _probe(logits: Tensor, random: torch.Generator) -> Tensor:
    """A random vector with the covariance diag(p) - p p' for each distribution of logits [..., card]."""
    p = logits.softmax(-1)
    signed = p.sqrt() * (2.0 * torch.randint(0, 2, p.shape, generator=random) - 1)
    return signed - p * signed.sum(-1, keepdim=True)


Seen = dict[str, tuple[Tensor, Tensor]]  # by the name of a Linear: its input and output


@contextmanager
def _recorded(module: nn.Module) -> Iterator[Seen]:
    """Record gradients, and the input and output of each Linear in `module`."""
    seen: Seen = {}

    def record(name: str, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (given[0], output)

    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, Linear)]
    # Depth steps share an input. A view for each Linear keeps their gradients apart.
    hooks = [part.register_forward_pre_hook(lambda _, given: given[0].view_as(given[0])) for _, part in linears]
    hooks += [
        part.register_forward_hook(lambda _, given, output, name=name: record(name, given, output))
        for name, part in linears
    ]
    try:
        with torch.enable_grad():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _back(y: Tensor, x: Tensor, seen: Seen, gradient: Tensor) -> tuple[Tensor, Seen]:
    """The gradients at x, and at the input and output of each Linear, for that at y."""
    places = [place for pair in seen.values() for place in pair]
    of_x, *found = torch.autograd.grad(y, [x, *places], gradient, retain_graph=True)
    return of_x, dict(zip(seen, zip(found[::2], found[1::2], strict=True), strict=True))


def _uses(seen: Seen, gradients: Mapping[str, Seen]) -> dict[str, Use]:
    """The use of each Linear, by its name; `gradients`: of each stream."""
    return {
        name: Use(
            _flat(given.detach()),
            {stream: _flat(found[name][0]) for stream, found in gradients.items()},
            {stream: _flat(found[name][1]) for stream, found in gradients.items()},
        )
        for name, (given, _) in seen.items()
    }


def _matrices(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}{name}.weight": part.weight.data for name, part in module.named_modules() if isinstance(part, Linear)
    }


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, -2)


def _known(item: ForcedHistory) -> Tensor:
    """The steps whose next tokens are known."""
    return (item.target >= 0).all(1).nonzero()[:, 0]


def _some(rows: Tensor) -> Tensor:
    return rows[:: max(1, -(-len(rows) // DEPTH_ROWS))]
