"""Calibration: runs conversations in float32, and records statistics of each matrix's input. Called by `export.build`.

fp8 needs the largest input of each matrix of the language model. AWQ needs the mean square of each input channel, and the
compensation of rounding errors the common directions of the channels. Rings in int8 need the largest value of each of their
channels. The temporal transformer runs layer by layer over all conversations, so only one layer's weights are in memory.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import CalibrationSet, default_conversations, recorded_conversations
from pplex.export.depth import Depth
from pplex.export.layers import even_noise
from pplex.export.moments import Moments, importance
from pplex.export.recording import Record
from pplex.export.temporal import Temporal, TemporalLayer, ring_places
from pplex.runtime.bundle import Voice, file_sha256
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import CalibrationError
from pplex.runtime.files import check_readable, is_file, is_folder
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import FP32, MIXED
from pplex.runtime.text import Tokenizer

DEFAULT_CALIBRATION = "default"  # the voices and synthetic speech
CALIBRATION_FILE = "calibration.safetensors"
_DEPTH_ROWS = 256  # temporal steps in one call of the depth transformer
_KEPT_ROWS = 1024  # of all inputs of a depth step's matrix: they are in memory at once for all steps
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Calibration:
    """Statistics by "GRAPH.PARAMETER", and their origin.

    rings: the largest value of each channel of a ring, by "ATTENTION.k" or v. Empty in files of earlier versions.
    """

    largest: Mapping[str, float]
    mean_square: Mapping[str, Tensor]  # [K] float32
    source: Mapping[str, str]
    directions: Mapping[str, Tensor] = field(default_factory=dict)  # [K, R] float16, divided by the root mean square
    rings: Mapping[str, Tensor] = field(default_factory=dict)  # [H, D] float32

    def importance(self, graph: str, parameter: str) -> Tensor:
        """Mean square of each input channel of a matrix, [K]."""
        return importance(self.mean_square[f"{graph}.{parameter}"])

    def moments(self, graph: str, parameter: str) -> Moments:
        """The second moments of a matrix's input; without directions if an earlier version wrote the calibration."""
        name = f"{graph}.{parameter}"
        square = self.mean_square[name]
        found = self.directions.get(name, square.new_empty(len(square), 0))
        return Moments(square, found.float() * square.sqrt()[:, None])

    def save(self, path: Path) -> None:
        tensors = {f"{name}.mean_square": square.contiguous() for name, square in self.mean_square.items()}
        tensors |= {f"{name}.directions": found.contiguous() for name, found in self.directions.items()}
        tensors |= {f"{name}.largest": torch.tensor([value]) for name, value in self.largest.items()}
        tensors |= {f"{name}.ring": largest.contiguous() for name, largest in self.rings.items()}
        path.write_bytes(save(tensors, {"calibration": json.dumps(dict(self.source))}))

    @classmethod
    def load(cls, path: Path, config: ModelConfig, weights_mark: str) -> "Calibration":
        """Read a file that `save` wrote. Raises CalibrationError if it is not a calibration, or is for another model."""
        try:
            check_readable(path)
            with safe_open(path, framework="pt") as file:
                source = json.loads((file.metadata() or {})["calibration"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            square = {key.removesuffix(".mean_square"): t for key, t in tensors.items() if key.endswith(".mean_square")}
            largest = {name: float(tensors[f"{name}.largest"]) for name in square}
            common = {name: tensors[f"{name}.directions"] for name in square if f"{name}.directions" in tensors}
            rings = {key.removesuffix(".ring"): t for key, t in tensors.items() if key.endswith(".ring")}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CalibrationError(
                f"{path} is not a calibration ({error}). Name a folder of recordings instead."
            ) from error
        expected = {name: shape[0] for name, shape in _matrices(config)}
        if {name: len(value) for name, value in square.items()} != expected:
            raise CalibrationError(
                f"{path} is for a model with other sizes or depth steps. Calibrate again, with recordings."
            )
        if source.get("weights") != weights_mark:
            raise CalibrationError(f"{path} is for a checkpoint with other weights. Calibrate again.")
        return cls(largest, square, source, common, rings)


def uses_awq(precision: str, compiled: bool) -> bool:
    """Whether a graph in this precision is rounded with AWQ if there is a calibration; `compiled`: it is for an engine."""
    return precision in ("int4", MIXED.name) or (precision == "int8" and compiled)


def needs_calibration(precision: Mapping[str, str], given: bool, compiled: bool) -> bool:
    """Whether these precisions (by graph) use a calibration. Raises CalibrationError if one needs it and none is given."""
    needing = [f"{name} ({graph})" for graph, name in precision.items() if name in ("fp8", MIXED.name)]
    if needing and not given:
        raise CalibrationError(
            f"{' and '.join(needing)} needs a calibration. Leave --calibration out for synthetic speech, or name a folder "
            "of recordings; the other precisions work without one."
        )
    return bool(needing) or (given and any(uses_awq(name, compiled) for name in precision.values()))


def stored_calibration(given: str | os.PathLike[str]) -> Path | None:
    """The file of a stored calibration, given as the file or its bundle; None for recordings or synthetic speech."""
    path = Path(given)
    stored = path / CALIBRATION_FILE if is_folder(path) else path
    return stored if given != DEFAULT_CALIBRATION and is_file(stored) else None


def find_calibration(
    given: str | os.PathLike[str],
    checkpoint: Checkpoint,
    config: ModelConfig,
    voices: Mapping[str, Voice],
    progress: Progress,
) -> Calibration:
    """The calibration that BuildOptions names: a stored one, or a new one. Raises CalibrationError."""
    stored = stored_calibration(given)
    if stored is not None:
        return Calibration.load(stored, config, weights_mark(checkpoint))
    return calibrate(checkpoint, config, find_conversations(given, checkpoint, voices), progress)


def find_conversations(
    given: str | os.PathLike[str], checkpoint: Checkpoint, voices: Mapping[str, Voice]
) -> CalibrationSet:
    """The conversations that BuildOptions names; synthetic speech beside a stored calibration. Raises CalibrationError."""
    tokenizer = Tokenizer(checkpoint.tokenizer)
    if given == DEFAULT_CALIBRATION or stored_calibration(given) is not None:
        return default_conversations(checkpoint, tokenizer, voices)
    return recorded_conversations(checkpoint, tokenizer, voices, Path(given))


def calibrate(
    checkpoint: Checkpoint, config: ModelConfig, conversations: CalibrationSet, progress: Progress
) -> Calibration:
    """Run the conversations with all tokens forced, in float32 on the processor, and record the input of each matrix.

    `progress` gets the bytes of float32 weights read. Raises CalibrationError for an input that is not finite.
    """
    record = Record()
    with torch.inference_mode():
        hidden = _temporal(checkpoint, config, conversations, record, progress)
        _depth(checkpoint, config, hidden, conversations, record, progress)
    wrong = [name for name, value in record.largest.items() if not math.isfinite(value)]
    if wrong:
        raise CalibrationError(f"The input of {wrong[0]} is not finite: the checkpoint or the recordings are damaged.")
    source = {**conversations.source, "weights": weights_mark(checkpoint)}
    return Calibration(record.largest, record.mean_square, source, record.directions, record.rings)


def weights_mark(checkpoint: Checkpoint) -> str:
    """Identifies a checkpoint's weights: the SHA-256 of its text head, and of its adapter if it has one."""
    head = checkpoint.read("text_linear.weight").contiguous().view(torch.uint8).numpy()
    found = hashlib.sha256(head.data)
    if checkpoint.lora is not None:
        found.update(f"{checkpoint.lora.scaling} {file_sha256(checkpoint.lora.path)}".encode())
    return found.hexdigest()


def calibration_nbytes(config: ModelConfig) -> int:
    """Total bytes that `calibrate` reports to its progress."""
    return sum(weights_nbytes(config, FP32)[graph] for graph in LANGUAGE_GRAPHS)


def _temporal(
    checkpoint: Checkpoint, config: ModelConfig, conversations: CalibrationSet, record: Record, progress: Progress
) -> list[Tensor]:
    """The hidden states after all steps: [T, dim] for each conversation."""
    load = weights.PartLoader("temporal", checkpoint, config, progress)
    with torch.device("meta"):
        module = Temporal(config)
    load(module, "text_emb")
    load(module, "audio_emb")
    streams = [module.embed_streams(item.codes[None]) + item.embedding for item in conversations.items]  # [1, T, dim]
    places = [history_place(x.shape[1], config) for x in streams]
    module.text_emb.data, module.audio_emb.data = torch.empty(0), torch.empty(0)
    for i in range(config.temporal.layers):
        with torch.device("meta"):
            layer = TemporalLayer(config.temporal)
        load(layer, f"layers.{i}.")
        with record.watching(layer, f"temporal.layers.{i}."):
            results = record.each(partial(_stepped, layer), zip(streams, places, strict=True))
        for _, ring_k, ring_v in results:
            record.add_rings(f"temporal.layers.{i}.attention", ring_k, ring_v)
        streams = [x for x, _, _ in results]
    load(module.out_norm, "out_norm.")
    hidden = [module.out_norm(x[0]) for x in streams]
    record.each(partial(record.add, "temporal.text_linear.weight"), hidden)
    record.sum_up()
    return hidden


def _stepped(layer: TemporalLayer, item: tuple[Tensor, tuple[Tensor | None, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output and its rings, for its input [1, T, dim] and the arguments after it."""
    x, place = item
    y, ring_k, ring_v = layer(x, *place)
    return y, ring_k, ring_v


def history_place(steps: int, config: ModelConfig) -> tuple[Tensor | None, ...]:
    """The arguments of a layer for steps 0 to `steps` - 1, without its input: empty rings, places in them, angles."""
    stack, capacity, start = config.temporal, steps + 1, torch.zeros(1, dtype=torch.int64)
    ring = torch.zeros(1, stack.heads, capacity, stack.head_dim)
    queries, entries = torch.arange(steps), torch.arange(capacity)
    return ring, ring, *ring_places(start, queries, entries, stack)


def _depth(
    checkpoint: Checkpoint,
    config: ModelConfig,
    hidden: list[Tensor],
    conversations: CalibrationSet,
    record: Record,
    progress: Progress,
) -> None:
    """Run the depth transformer for every step whose next tokens are known, with these tokens forced."""
    with torch.device("meta"):
        module = Depth(config)
    weights.PartLoader("depth", checkpoint, config, progress, keep_16_bits=True)(module, "")
    target = torch.cat([item.target for item in conversations.items])
    known = (target >= 0).all(1)
    rows, target = torch.cat([x[:-1] for x in hidden])[known], target[known]
    with record.watching(module, "depth.", every=-(-len(rows) // _KEPT_ROWS)):
        record.each(partial(_drawn, module), zip(rows.split(_DEPTH_ROWS), target.split(_DEPTH_ROWS), strict=True))


def _drawn(module: Depth, item: tuple[Tensor, Tensor]) -> None:
    """Run the depth transformer for hidden states [n, dim] with the next tokens [n, 17] forced."""
    hidden, tokens = item
    ones, noise = torch.ones(len(hidden)), even_noise(len(hidden), tokens.shape[1])
    module(hidden, tokens[:, 0], tokens[:, 1 : 1 + len(module.steps)], *noise, ones, ones.long())


def _matrices(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every matrix that multiplies activations, with its shape [K, N]."""
    for graph in LANGUAGE_GRAPHS:
        for name, parameter in weights.parameters(graph, config).items():
            if name.endswith(".weight") and parameter.dim() == 2:
                yield f"{graph}.{name}", tuple(parameter.shape)
