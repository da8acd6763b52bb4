"""The four engines side by side: host buffers for S slots, and one prepared call per graph and batch size."""

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pplex.runtime.bundle import Bundle
from pplex.runtime.config import CODEBOOKS, MAX_CANDIDATES
from pplex.runtime.engine import Array, Call, Engine, OnnxRuntimeEngine
from pplex.runtime.graphs import graph_specs

Tokens = npt.NDArray[np.int64]


class Stages:
    """What one frame goes through, for slots 0, ..., batch - 1 at once.

    The buffers below are [S, ...] and are read and written in place by `run`. A slot that is not active keeps its codec
    state, and its row of every other buffer must hold valid values, as it does from the start.
    """

    def __init__(self, bundle: Bundle, slots: int, threads: int | None = None):
        config = bundle.config
        streams, dim, steps = config.num_streams, config.temporal.dim, config.depth_steps
        self.slots = slots
        # mimi_encode
        self.pcm_in = np.zeros((slots, 1, config.frame_size), np.float32)
        self.active = np.zeros(slots, np.bool_)
        self.user_codes = np.zeros((slots, CODEBOOKS), np.int64)
        # temporal
        self.codes = np.zeros((slots, 1, streams), np.int64)
        self.embedding = np.zeros((slots, 1, dim), np.float32)
        self.position = np.zeros(slots, np.int64)
        self.forced_text = np.zeros(slots, np.int64)
        self.text_noise = np.ones((slots, MAX_CANDIDATES), np.float32)
        self.text_temperature = np.ones(slots, np.float32)
        self.text_top_k = np.ones(slots, np.int64)
        self.hidden = np.zeros((slots, dim), np.float32)
        self.text_token = np.zeros(slots, np.int64)
        # depth
        self.forced_audio = np.zeros((slots, steps), np.int64)
        self.audio_noise = np.ones((slots, steps, MAX_CANDIDATES), np.float32)
        self.audio_temperature = np.ones(slots, np.float32)
        self.audio_top_k = np.ones(slots, np.int64)
        self.audio_tokens = np.zeros((slots, steps), np.int64)
        # mimi_decode
        self.agent_codes = np.zeros((slots, CODEBOOKS), np.int64)
        self.pcm_out = np.zeros((slots, 1, config.frame_size), np.float32)

        sizes = {"C": config.temporal.capacity}
        self.engines: dict[str, Engine] = {
            name: OnnxRuntimeEngine(bundle.graph_path(name), spec, slots, sizes, threads)
            for name, spec in graph_specs(config).items()
        }
        self.seconds = dict.fromkeys(self.engines, 0.0)  # spent in `run` so far, by graph
        self._calls: dict[tuple[str, int, int], Call] = {}

    def run(self, graph: str, batch: int, row: int = 0) -> None:
        """Run one graph for slots row, ..., row + batch - 1."""
        key = (graph, batch, row)
        if key not in self._calls:
            tensors = {name: buffer[row : row + batch] for name, buffer in self.tensors(graph).items()}
            self._calls[key] = self.engines[graph].bind(tensors, row, batch)
        began = time.perf_counter()
        self._calls[key]()
        self.seconds[graph] += time.perf_counter() - began

    def run_forced(self, row: int, position: int, codes: Tokens, embedding: npt.NDArray[np.float32]) -> None:
        """Take one slot's temporal state through forced steps: codes [T, 17], embedding [T, dim]; nothing is sampled."""
        tensors = {name: buffer[row : row + 1] for name, buffer in self.tensors("temporal").items()}
        tensors |= {"codes": codes[None], "embedding": embedding[None]}
        self.position[row], self.forced_text[row] = position, 0
        self.engines["temporal"].bind(tensors, row, 1)()

    def reset(self, row: int, steps: int) -> None:
        """Make a slot new after `steps` steps of the temporal transformer."""
        for engine in self.engines.values():
            engine.reset(row, 2 * steps if engine.spec.name.startswith("mimi") else steps)

    def tensors(self, graph: str) -> Mapping[str, Array]:
        """A graph's inputs and outputs by name, [S, ...] each."""
        tensors: dict[str, dict[str, Array]] = {
            "mimi_encode": {"pcm": self.pcm_in, "active": self.active, "codes": self.user_codes},
            "temporal": {
                "codes": self.codes,
                "embedding": self.embedding,
                "position": self.position,
                "forced_text": self.forced_text,
                "text_noise": self.text_noise,
                "text_temperature": self.text_temperature,
                "text_top_k": self.text_top_k,
                "hidden": self.hidden,
                "text_token": self.text_token,
            },
            "depth": {
                "hidden": self.hidden,
                "text_token": self.text_token,
                "forced_audio": self.forced_audio,
                "audio_noise": self.audio_noise,
                "audio_temperature": self.audio_temperature,
                "audio_top_k": self.audio_top_k,
                "audio_tokens": self.audio_tokens,
            },
            "mimi_decode": {"codes": self.agent_codes, "active": self.active, "pcm": self.pcm_out},
        }
        return tensors[graph]
