"""A random codec that behaves: its codebooks are drawn around what speech-like sound leaves them to quantize."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplex.export.checkpoint import Checkpoint, mimi_tensors
from pplex.export.mimi import MimiEncoder, Quantizer
from pplex.export.synth_tensors import Progress, generator, normal, write_tensors
from pplex.export.threads import one_thread
from pplex.export.weights import load
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.graphs import graph_specs, seanet_decoder
from pplex.runtime.synthetic_speech import speech_like

GAIN = 1.0  # of a matrix: it keeps the deviation of what it multiplies
# ELU takes off a third of a unit normal's power, and a residual block adds to its stream.
CONV_GAIN, RESIDUAL_GAIN = 1.25, 0.6
SAMPLES_GAIN = 8.0  # of the convolution that reads samples, whose deviation in speech is about 0.1
NORM_STD, BIAS_STD, LAYER_SCALE = 0.1, 0.1, 0.3

CALIBRATION_SIGNALS, CALIBRATION_FRAMES = 4, 40
PEAK = 0.6  # of the calibration signals after the codec, full scale being 1
CODEBOOK_SPREAD = 0.7  # deviation of a codebook's entries over that of what it quantizes


def write_codec(path: Path, config: ModelConfig, seed: int, progress: Progress) -> None:
    shapes = mimi_tensors(config)
    tensors = {key: _codec_tensor(seed, key, shape) for key, shape in shapes.items()}
    with one_thread():
        _calibrate(tensors, config, seed)
    write_tensors(path, "F32", shapes, (tensors[key].contiguous().numpy() for key in shapes), progress)


def _codec_tensor(seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith(("_initialized", "cluster_usage", "embedding_sum")):
        return torch.ones(shape)  # the calibration replaces a codebook
    return normal(seed, key, math.prod(shape), *_codec_moments(key, shape)).reshape(shape)


def _codec_moments(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation of a tensor's numbers."""
    if "norm" in key:
        return float(key.endswith("weight")), NORM_STD
    if "layer_scale" in key:
        return LAYER_SCALE, LAYER_SCALE / 10
    if key.endswith("bias"):
        return 0.0, BIAS_STD
    fan_in = math.prod(shape[1:])
    if "convtr" in key:  # the stride is half the kernel, so two taps of every channel meet in a sample
        fan_in = 2 if key.startswith("upsample") else 2 * shape[0]
    return 0.0, _codec_gain(key) / math.sqrt(fan_in)


def _codec_gain(key: str) -> float:
    if key.startswith("encoder.model.0."):
        return SAMPLES_GAIN
    if ".block.3." in key:
        return RESIDUAL_GAIN
    return CONV_GAIN if ".model." in key else GAIN


def _calibrate(tensors: dict[str, Tensor], config: ModelConfig, seed: int) -> None:
    """Set the codebooks from what they are to quantize, then the last convolution to a sound of a known peak."""
    signals = [speech_like(CALIBRATION_FRAMES, config.frame_size, seed=i) for i in range(CALIBRATION_SIGNALS)]
    pcm = torch.from_numpy(np.stack(signals)).reshape(CALIBRATION_SIGNALS, CALIBRATION_FRAMES, 1, -1)
    checkpoint = Checkpoint(Path(), config, config.stored_depth_sets, dict.fromkeys(tensors, _InMemory(tensors)))
    encoder = load("mimi_encode", checkpoint)
    assert isinstance(encoder, MimiEncoder)
    latents = stream_codec("mimi_encode", config, encoder.latent, pcm)  # [B, F, dim]
    codes = _set_codebooks(tensors, encoder.quantizer, latents.flatten(0, 1), seed)
    codes = codes.reshape(CALIBRATION_SIGNALS, CALIBRATION_FRAMES, CODEBOOKS)
    sound = stream_codec("mimi_decode", config, load("mimi_decode", checkpoint), codes)
    _set_peak(tensors, seanet_decoder(config.mimi).last.key, sound)


@dataclass(frozen=True)
class _InMemory:
    """Tensors by key, read as an open safetensors file is."""

    tensors: dict[str, Tensor]

    def get_tensor(self, key: str) -> Tensor:
        return self.tensors[key]


def stream_codec(graph: str, config: ModelConfig, step: Callable[..., Any], inputs: Tensor) -> Tensor:
    """Take inputs [B, F, ...] frame by frame through `step`: what it returns before its new state, [B, F, ...]."""
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
    """Draw every codebook around what reaches it; returns the codes of the latents [N, dim]: [N, 8]."""
    codes = []
    for part, project in (("rvq_first", quantizer.semantic), ("rvq_rest", quantizer.acoustic)):
        rest = project(latents)  # [N, codebook_dim], what is left for the next codebook
        for key in [key for key in tensors if re.match(rf"quantizer\.{part}\..*\.embedding_sum", key)]:
            size = len(tensors[key])
            entries, usage = _entries(rest, size, seed, key), _usage(size, seed, key)
            tensors[key] = entries * usage[:, None]
            tensors[key.replace("embedding_sum", "cluster_usage")] = usage
            codes.append(torch.cdist(rest, entries).argmin(1))
            rest = rest - entries[codes[-1]]
    return torch.stack(codes[:CODEBOOKS], 1)


def _entries(rest: Tensor, size: int, seed: int, key: str) -> Tensor:
    """Codebook entries with the mean of `rest` [N, dim] and its correlations, nearer to the mean: [size, dim].

    In many dimensions, of entries spread as wide as the data the few shortest ones would be nearest to everything.
    """
    mean = rest.mean(0)
    mixture = normal(seed, key, size * len(rest), 0.0, CODEBOOK_SPREAD / math.sqrt(len(rest))).reshape(size, -1)
    return mean + mixture @ (rest - mean)


def _usage(size: int, seed: int, key: str) -> Tensor:
    usage = generator(seed, f"{key}/usage").uniform(0.5, 50.0, size)
    return torch.from_numpy(usage.astype(np.float32))


def _set_peak(tensors: dict[str, Tensor], last: str, sound: Tensor) -> None:
    """Scale the last convolution, whose output was `sound`, to PEAK around zero."""
    mean = sound.mean()
    scale = PEAK / (sound - mean).abs().max()
    tensors[f"{last}.weight"] = tensors[f"{last}.weight"] * scale
    tensors[f"{last}.bias"] = (tensors[f"{last}.bias"] - mean) * scale
