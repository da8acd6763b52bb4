"""A random codec that behaves like a trained one: called by `export.synth`.

Speech-like sound runs through its encoder, and the codebooks are drawn around the vectors that they must quantize. Its
`stream_codec` runs a codec frame by frame, for `export.conversations` and `validate`, too.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplex.export.checkpoint import Checkpoint
from pplex.export.layout import NO_FILES
from pplex.export.mimi import MimiEncoder, Quantizer
from pplex.export.synth_tensors import Progress, generator, normal, write_tensors
from pplex.export.tensor_tables import mimi_tensors
from pplex.export.tensors import Stored
from pplex.export.threads import one_thread
from pplex.export.weights import load
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.graphs import graph_specs, seanet_decoder
from pplex.runtime.synthetic_speech import speech_like

GAIN = 1.0  # of a matrix: it keeps the standard deviation of its input
# ELU removes a third of the power of a unit normal, and a residual block adds power.
CONV_GAIN, RESIDUAL_GAIN = 1.25, 0.6
SAMPLES_GAIN = 8.0  # of the first convolution: speech samples have a standard deviation of about 0.1
NORM_STD, BIAS_STD, LAYER_SCALE = 0.1, 0.1, 0.3

CALIBRATION_SIGNALS, CALIBRATION_FRAMES = 4, 40
PEAK = 0.6  # of the decoded calibration signals; full scale is 1
CODEBOOK_SPREAD = 0.7  # standard deviation of a codebook's entries, relative to the vectors that it quantizes


def write_codec(path: Path, config: ModelConfig, seed: int, progress: Progress) -> None:
    shapes = mimi_tensors(config)
    tensors = {key: _codec_tensor(seed, key, shape) for key, shape in shapes.items()}
    with one_thread():
        _calibrate(tensors, config, seed)
    write_tensors(path, "F32", shapes, (tensors[key].contiguous().numpy() for key in shapes), progress)


def _codec_tensor(seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith(("_initialized", "cluster_usage", "embedding_sum")):
        return torch.ones(shape)  # `_calibrate` replaces the codebooks
    return normal(seed, key, math.prod(shape), *_codec_moments(key, shape)).reshape(shape)


def _codec_moments(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's numbers."""
    if "norm" in key:
        return float(key.endswith("weight")), NORM_STD
    if "layer_scale" in key:
        return LAYER_SCALE, LAYER_SCALE / 10
    if key.endswith("bias"):
        return 0.0, BIAS_STD
    fan_in = math.prod(shape[1:])
    if "convtr" in key:  # the stride is half the kernel, so a sample is the sum of two taps for every channel
        fan_in = 2 if key.startswith("upsample") else 2 * shape[0]
    return 0.0, _codec_gain(key) / math.sqrt(fan_in)


def _codec_gain(key: str) -> float:
    if key.startswith("encoder.model.0."):
        return SAMPLES_GAIN
    if ".block.3." in key:
        return RESIDUAL_GAIN
    return CONV_GAIN if ".model." in key else GAIN


def _calibrate(tensors: dict[str, Tensor], config: ModelConfig, seed: int) -> None:
    """Draw the codebooks around their inputs, then scale the last convolution so that the sound has a known peak."""
    signals = [speech_like(CALIBRATION_FRAMES, config.frame_size, seed=i) for i in range(CALIBRATION_SIGNALS)]
    pcm = torch.from_numpy(np.stack(signals)).reshape(CALIBRATION_SIGNALS, CALIBRATION_FRAMES, 1, -1)
    sources = {key: _InMemory(tensors, key) for key in tensors}
    checkpoint = Checkpoint(config, config.stored_depth_sets, sources, NO_FILES)
    encoder = load("mimi_encode", checkpoint)
    assert isinstance(encoder, MimiEncoder)
    latents = stream_codec("mimi_encode", config, encoder.latent, pcm)  # [B, F, dim]
    codes = _set_codebooks(tensors, encoder.quantizer, latents.flatten(0, 1), seed)
    codes = codes.reshape(CALIBRATION_SIGNALS, CALIBRATION_FRAMES, CODEBOOKS)
    sound = stream_codec("mimi_decode", config, load("mimi_decode", checkpoint), codes)
    _set_peak(tensors, seanet_decoder(config.mimi).last.key, sound)


@dataclass(frozen=True)
class _InMemory:
    """The tensor that has a key when it is read."""

    tensors: dict[str, Tensor]
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensors[self.key].shape)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensors[self.key][start:stop]

    def stored(self) -> Iterator[Stored]:
        return iter(())


def stream_codec(graph: str, config: ModelConfig, step: Callable[..., Any], inputs: Tensor) -> Tensor:
    """Run `step` frame by frame over inputs [B, F, ...]; returns its outputs without the state, [B, F, ...]."""
    slots = len(inputs)
    state = [
        torch.zeros([slots if size == "B" else int(size) for size in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in graph_specs(config)[graph].state
    ]
    outputs = []
    for frame in inputs.unbind(1):
        output, *present = step(frame, torch.ones(slots, dtype=torch.bool), *state)
        state = present[0] if isinstance(present[0], list) else present  # latent() returns its state as one list
        outputs.append(output)
    return torch.stack(outputs, 1)


def _set_codebooks(tensors: dict[str, Tensor], quantizer: Quantizer, latents: Tensor, seed: int) -> Tensor:
    """Draw every codebook around the vectors that reach it; returns the codes of the latents [N, dim]: [N, 8]."""
    codes = []
    for part, project in (("rvq_first", quantizer.semantic), ("rvq_rest", quantizer.acoustic)):
        rest = project(latents)  # [N, codebook_dim]: the remainder for the next codebook
        for key in [key for key in tensors if re.match(rf"quantizer\.{part}\..*\.embedding_sum", key)]:
            size = len(tensors[key])
            entries, usage = _entries(rest, size, seed, key), _usage(size, seed, key)
            tensors[key] = entries * usage[:, None]
            tensors[key.replace("embedding_sum", "cluster_usage")] = usage
            codes.append(torch.cdist(rest, entries).argmin(1))
            rest = rest - entries[codes[-1]]
    return torch.stack(codes[:CODEBOOKS], 1)


def _entries(rest: Tensor, size: int, seed: int, key: str) -> Tensor:
    """Codebook entries with the mean and the correlations of `rest` [N, dim], but closer to the mean: [size, dim].

    If the entries were as far from the mean as the data, a few short ones would be nearest to all vectors, because the
    space has many dimensions.
    """
    mean = rest.mean(0)
    mixture = normal(seed, key, size * len(rest), 0.0, CODEBOOK_SPREAD / math.sqrt(len(rest))).reshape(size, -1)
    return mean + mixture @ (rest - mean)


def _usage(size: int, seed: int, key: str) -> Tensor:
    usage = generator(seed, f"{key}/usage").uniform(0.5, 50.0, size)
    return torch.from_numpy(usage.astype(np.float32))


def _set_peak(tensors: dict[str, Tensor], last: str, sound: Tensor) -> None:
    """Change the last convolution so that its output, now `sound`, has mean zero and a peak of PEAK."""
    mean = sound.mean()
    scale = PEAK / (sound - mean).abs().max()
    tensors[f"{last}.weight"] = tensors[f"{last}.weight"] * scale
    tensors[f"{last}.bias"] = (tensors[f"{last}.bias"] - mean) * scale
