"""The PyPI package moshi as a backend of a sweep (see sweep.py): PersonaPlex has the same architecture."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pplex.bench.kernels import launched
from pplex.bench.sweep import SweepOptions, SweepReport, moved_nbytes, sweep
from pplex.bench.torch_device import TorchDevice, gpu_memory
from pplex.export.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from pplex.measure.machine import machine
from pplex.runtime.config import CODEBOOKS, MIMI_PARTS, RELEASED_ARGUMENTS, SAMPLE_RATE_HZ
from pplex.runtime.config_file import read_config
from pplex.runtime.device import Call
from pplex.runtime.environment import TORCH_CACHES, temporary_cache
from pplex.runtime.errors import EngineError, LibraryError
from pplex.runtime.graphs import graph_specs
from pplex.runtime.memory import fitting_slots, slot_nbytes
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import FP32

LANGUAGE = "language"  # the row of both transformers: a step of the package runs both
PRECISION = {**FP32, **dict.fromkeys(LANGUAGE_GRAPHS, "bf16")}  # as the package's server uses
GRAPHED_CALLS = 2  # calls until a function is a CUDA graph: a warm-up, and the captured call


@temporary_cache(TORCH_CACHES)  # torch.compile compiles parts of the package
def bench_moshi(checkpoint: Path, options: SweepOptions) -> SweepReport:
    """Sweep the package at `checkpoint`'s sizes with random weights.

    Raises CheckpointError, EngineError, and LibraryError if the package or one of its dependencies is missing.
    """
    return sweep(MoshiBackend(open_checkpoint(checkpoint), options.slots, options.device), options)


class MoshiBackend:
    """The package's language model with eight depth steps, and its codec. On a GPU they make their own CUDA graphs.

    Every call advances the KV cache. So measured conversations have up to a few hundred more context steps than the report
    says. Each call reads the whole cache, filled or not.
    """

    def __init__(self, checkpoint: Checkpoint, slots: int, device: str | None):
        loaders, generator = _package()
        self.device, self._config = TorchDevice(device), checkpoint.config
        self._bandwidth = self.device.bandwidth()
        per_slot = slot_nbytes(graph_specs(self._config, PRECISION).values(), self._config.temporal.capacity)
        weights = sum(weights_nbytes(self._config, PRECISION).values())
        self.slots = fitting_slots(self.device.free_nbytes(), per_slot, weights, slots)
        language, codec = _arguments(checkpoint)
        with gpu_memory(), torch.no_grad():
            self._model = loaders.get_moshi_lm(None, language, self.device.torch, torch.bfloat16)
            self._codec = loaders.get_mimi(None, codec, self.device.torch, CODEBOOKS)
            for name, codebook in self._codec.named_buffers():
                if name.endswith("embedding_sum"):
                    codebook.normal_()
        self._generator = generator(self._model)
        self._streams, self._batch = ExitStack(), 0
        self.title = f"moshi at the sizes of {checkpoint.folder.name}"
        packages = machine(None, "moshi", "torch", "triton", "numpy")
        self.machine: Mapping[str, Any] = {"device": self.device.name, **packages}
        self.figures: Mapping[str, Any] = {"precision": PRECISION, "GB/s": round(self._bandwidth / 1e9, 1)}

    def prepare(self, slots: int, context_steps: int) -> Mapping[str, Call]:
        with gpu_memory():
            if slots != self._batch:
                self._stream(slots)
            # The first frames of a conversation have no codes to decode.
            steps = max(context_steps, self._config.max_delay + 1)
            self._fill_rings(self._generator, steps)
            self._fill_rings(self._model, steps)
            self._fill_rings(self._codec, self._config.mimi.steps_per_frame * steps)
            self.device.synchronize()
        return {"mimi_encode": self._encode, LANGUAGE: self._speak, "mimi_decode": self._decode}

    def frame(self, slots: int) -> None:
        self._pcm.copy_(self._host_pcm, non_blocking=True)
        self._encode()
        self._speak()
        self._decode()
        self._host_tokens.copy_(self._tokens, non_blocking=True)
        self._host_reply.copy_(self._reply, non_blocking=True)
        self.device.synchronize()

    def floor_ms(self, slots: int, context_steps: int) -> Mapping[str, float]:
        moved = moved_nbytes(self._config, PRECISION, slots, context_steps)
        floors = {graph: 1000 * nbytes / self._bandwidth for graph, nbytes in moved.items()}
        language = sum(floors.pop(graph) for graph in LANGUAGE_GRAPHS)
        return {**floors, LANGUAGE: language}

    def kernels(self, calls: Mapping[str, Call]) -> Mapping[str, int]:
        return launched(calls, self.device.synchronize) if self.device.is_gpu else {}

    # Stages.

    @torch.no_grad()
    def _encode(self) -> None:
        self._codes = self._codec.encode(self._pcm)  # [B, 8, 1]

    @torch.no_grad()
    def _speak(self) -> None:
        spoken = self._generator.step(self._codes)
        if spoken is not None:  # None until the longest delay has passed
            self._tokens = spoken  # [B, 9, 1]

    @torch.no_grad()
    def _decode(self) -> None:
        self._reply = self._codec.decode(self._tokens[:, 1:])  # [B, 1, 1920]

    # State.

    def _stream(self, slots: int) -> None:
        """Start `slots` new conversations and step them until the package has captured its CUDA graphs."""
        self._streams.close()
        self._batch = 0
        self.device.free_nbytes()
        for module in (self._codec, self._generator):
            self._streams.enter_context(module.streaming(slots))
        self._pcm = torch.zeros(slots, 1, self._config.frame_size, device=self.device.torch)
        self._tokens = torch.zeros(slots, 1 + CODEBOOKS, 1, dtype=torch.int64, device=self.device.torch)
        self._host_pcm = self.device.host(self._pcm).normal_(0, 0.05)
        self._host_reply, self._host_tokens = self.device.host(self._pcm), self.device.host(self._tokens)
        try:
            for _ in range(self._config.max_delay + GRAPHED_CALLS):
                self.frame(slots)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise EngineError(
                f"moshi cannot compute a frame of {slots} conversations here: {error}\n"
                "If torch.compile fails, turn it off: set NO_TORCH_COMPILE=1 in the environment."
            ) from error
        self._batch = slots

    @staticmethod
    def _fill_rings(module: Any, steps: int) -> None:
        """Fill a module's KV caches with noise for `steps` steps, and set its counters to `steps`."""
        for state in module.get_streaming_state().values():
            for counter in (getattr(state, name, None) for name in ("offset", "offsets")):
                if counter is not None:
                    counter.fill_(steps)
            if ring := getattr(state, "kv_cache", None):
                ring.end_offset.fill_(steps)
                ring.cache[..., :steps, :].normal_()


def _package() -> tuple[Any, Any]:
    """moshi.models.loaders, and moshi.models.LMGen."""
    try:
        from moshi.models import LMGen, loaders
    except ImportError as error:
        raise LibraryError(
            f"Cannot import the PyPI package moshi ({error}). It pins older versions of our packages, so install it by: "
            "pip install --no-deps moshi==0.2.13, and pip install einops huggingface_hub sentencepiece safetensors"
        ) from error
    return loaders, LMGen


def _arguments(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the language model, with eight depth steps, and of the codec: checkpoints use the package's names."""
    given = read_config(checkpoint.folder / CONFIG_FILE)
    language = {**RELEASED_ARGUMENTS["lm"], **given.lm, "dep_q": CODEBOOKS}
    parts = {part: {**RELEASED_ARGUMENTS[part], **given.mimi.get(part, {})} for part in MIMI_PARTS}
    frame_rate_hz = SAMPLE_RATE_HZ / checkpoint.config.frame_size
    return language, {**parts, "sample_rate": SAMPLE_RATE_HZ, "channels": 1, "frame_rate": frame_rate_hz}
