"""The four engines side by side: host buffers for S slots, and one prepared call per graph and batch size."""

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pplex.runtime.bundle import Bundle
from pplex.runtime.engine import Array, Call, Engine, OnnxRuntimeEngine
from pplex.runtime.graphs import TensorSpec
from pplex.runtime.precision import GRAPH_NAMES

Tokens = npt.NDArray[np.int64]

UNFETCHED = ("text_logits", "audio_logits")  # outputs for validation, which binds buffers of its own


class Stages:
    """What one frame goes through, for slots 0, ..., batch - 1 at once.

    The buffers below are [S, ...], shaped as in GraphSpec, and are read and written in place by `run`. A slot that is not
    active keeps its codec state, and its row of every other buffer must hold valid values, as it does from the start.
    """

    def __init__(self, bundle: Bundle, slots: int, threads: int | None = None):
        config, specs = bundle.config, bundle.specs
        self.slots = slots
        self._tensors = {
            name: {t.name: _buffer(t, slots) for t in (*spec.inputs, *spec.outputs) if t.name not in UNFETCHED}
            for name, spec in specs.items()
        }
        encode, temporal, depth, decode = (self._tensors[name] for name in GRAPH_NAMES)
        depth["hidden"], depth["text_token"] = temporal["hidden"], temporal["text_token"]
        decode["active"] = encode["active"]

        self.pcm_in, self.active, self.user_codes = encode["pcm"], encode["active"], encode["codes"]
        self.codes, self.position, self.forced_text = temporal["codes"], temporal["position"], temporal["forced_text"]
        self.text_noise, self.text_temperature = temporal["text_noise"], temporal["text_temperature"]
        self.text_top_k, self.hidden, self.text_token = (
            temporal["text_top_k"],
            temporal["hidden"],
            temporal["text_token"],
        )
        self.forced_audio, self.audio_noise = depth["forced_audio"], depth["audio_noise"]
        self.audio_temperature, self.audio_top_k = depth["audio_temperature"], depth["audio_top_k"]
        self.audio_tokens, self.agent_codes, self.pcm_out = depth["audio_tokens"], decode["codes"], decode["pcm"]

        sizes = {"C": config.temporal.capacity}
        self.engines: dict[str, Engine] = {
            name: OnnxRuntimeEngine(bundle.graph_path(name), spec, slots, sizes, threads)
            for name, spec in specs.items()
        }
        codec_entries = config.mimi.steps_per_frame
        self._ring_entries = {"mimi_encode": codec_entries, "temporal": 1, "depth": 0, "mimi_decode": codec_entries}
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
            engine.reset(row, self._ring_entries[engine.spec.name] * steps)

    def tensors(self, graph: str) -> Mapping[str, Array]:
        """A graph's inputs and outputs by name, [S, ...] each; the logits are not among them."""
        return self._tensors[graph]


def _buffer(tensor: TensorSpec, slots: int) -> Array:
    """Zeros, or ones where the graph divides by them: valid values for a slot that is not in use."""
    fill = np.ones if tensor.name.endswith(("noise", "temperature")) else np.zeros
    return fill([{"B": slots, "T": 1}[dim] if isinstance(dim, str) else dim for dim in tensor.shape], tensor.dtype)
