"""The four graphs' contract: names, shapes, dtypes and state, written once for exporter, engines, runtime and validation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pplex.runtime.config import CODEBOOKS, INT8, INT8_PAIRS, MimiConfig, ModelConfig, TransformerConfig
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import BUILT, FP32
from pplex.runtime.tolerances import Limits, tolerances

Dim = int | str  # a number, or a symbolic axis: B slots, T steps, C ring capacity

MAX_SLOTS, DEFAULT_SLOTS = 256, 8  # the largest number of rows of a graph; an engine's default
MAX_STEPS = 256  # the longest chunk of forced steps in one call of the temporal graph


def batch_sizes(slots: int, compiled: bool) -> list[int]:
    """The usual sizes of B for up to `slots` slots: 1, 2, 4, ... and `slots` itself.

    In an engine for more than one slot, a single conversation takes a batch of 2: see `engines.profiles`.
    """
    sizes = [1 << i for i in range((slots - 1).bit_length())] + [slots]
    return sizes[1:] if compiled and slots > 1 else sizes


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` with B first, `dtype` a numpy name or bfloat16."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class StateSpec:
    """One buffer that a graph carries from call to call. Row b belongs to slot b.

    A ring is a large buffer, and a call writes a few of its entries: input `past` and output `present` are the same memory.
    Other state (conv tails, positions) is small, and several nodes of the graph read it. So it has two buffers: the graph
    reads `past` and writes `present`, and after the call `present` is copied to `past`.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    ring: bool

    @property
    def past(self) -> str:
        return f"past.{self.name}"

    @property
    def present(self) -> str:
        return f"present.{self.name}"

    @property
    def written(self) -> str:
        """A ring after the write, before attention reads it: an output of graphs for the processor only."""
        return f"written.{self.name}"


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a bundle. State follows the inputs (as `past.*`) and the outputs (as `present.*`).

    `precision`: a name in BUILT, for the weights. Graphs with the same activation dtype have the same tensors.
    `int8_rings`: whether the temporal transformer's rings are in 8 bits, which changes the results of both language graphs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StateSpec, ...] = ()
    precision: str = field(default="fp32", compare=False)
    int8_rings: bool = field(default=False, compare=False)

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        return self.inputs + tuple(TensorSpec(s.past, s.dtype, s.shape) for s in self.state)

    @property
    def exact(self) -> bool:
        """Whether its results are those of float32, up to the order of sums."""
        return self.precision == "fp32" and not self.int8_rings

    @property
    def tolerances(self) -> Limits:
        """The allowed differences from float32, by measure."""
        return tolerances(self.name, self.precision, self.int8_rings)

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        return self.outputs + tuple(TensorSpec(s.present, s.dtype, s.shape) for s in self.state)


@dataclass(frozen=True)
class Conv:
    """One causal convolution of the codec; `key` is its place in the checkpoint."""

    key: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    transposed: bool = False
    depthwise: bool = False
    bias: bool = True

    @property
    def tail_shape(self) -> tuple[Dim, ...] | None:
        """The shape of a convolution's state: its last inputs, or the unfinished overlap of a transposed convolution."""
        length = self.kernel - self.stride
        return ("B", self.outputs if self.transposed else self.inputs, length) if length else None


@dataclass(frozen=True)
class Stage:
    """One resolution of SEANet: a strided convolution and the two convolutions of its residual block."""

    resample: Conv
    residual: tuple[Conv, Conv]


@dataclass(frozen=True)
class Seanet:
    """SEANet's layers in order: `first`, the stages, `last`."""

    first: Conv
    stages: tuple[Stage, ...]
    last: Conv

    def convs(self) -> Iterator[Conv]:
        yield self.first
        for stage in self.stages:
            yield from (stage.resample, *stage.residual)
        yield self.last


def seanet_encoder(mimi: MimiConfig) -> Seanet:
    """Encoder: conv, then a residual block and a strided conv for each ratio, which doubles the channels, then conv."""
    stages, channels = [], mimi.filters
    for i, ratio in enumerate(reversed(mimi.ratios)):
        down = Conv(f"encoder.model.{3 + 3 * i}.conv.conv", channels, 2 * channels, 2 * ratio, ratio)
        stages.append(Stage(down, _residual(f"encoder.model.{1 + 3 * i}", channels, mimi)))
        channels *= 2
    return Seanet(
        Conv("encoder.model.0.conv.conv", 1, mimi.filters, mimi.kernel),
        tuple(stages),
        Conv(f"encoder.model.{2 + 3 * len(stages)}.conv.conv", channels, mimi.dim, mimi.last_kernel),
    )


def seanet_decoder(mimi: MimiConfig) -> Seanet:
    """Decoder: conv, then a transposed conv and a residual block for each ratio, which halves the channels, then conv."""
    stages, channels = [], mimi.filters * 2 ** len(mimi.ratios)
    first = Conv("decoder.model.0.conv.conv", mimi.dim, channels, mimi.kernel)
    for i, ratio in enumerate(mimi.ratios):
        key = f"decoder.model.{2 + 3 * i}.convtr.convtr"
        up = Conv(key, channels, channels // 2, 2 * ratio, ratio, transposed=True)
        channels //= 2
        stages.append(Stage(up, _residual(f"decoder.model.{3 + 3 * i}", channels, mimi)))
    last = Conv(f"decoder.model.{2 + 3 * len(stages)}.conv.conv", channels, 1, mimi.last_kernel)
    return Seanet(first, tuple(stages), last)


def _residual(key: str, channels: int, mimi: MimiConfig) -> tuple[Conv, Conv]:
    inner = channels // mimi.compress
    return (
        Conv(f"{key}.block.1.conv.conv", channels, inner, mimi.residual_kernel),
        Conv(f"{key}.block.3.conv.conv", inner, channels, 1),
    )


def downsample(mimi: MimiConfig) -> Conv:
    """25 Hz to 12.5 Hz. It starts with its first sample repeated, instead of zeros."""
    return Conv("downsample.conv.conv.conv", mimi.dim, mimi.dim, 4, 2, bias=False)


def upsample(mimi: MimiConfig) -> Conv:
    """12.5 Hz to 25 Hz, one filter per channel."""
    return Conv("upsample.convtr.convtr.convtr", mimi.dim, mimi.dim, 4, 2, transposed=True, depthwise=True, bias=False)


def _rings(stack: TransformerConfig, capacity: Dim, dtype: str) -> tuple[StateSpec, ...]:
    shape: tuple[Dim, ...] = ("B", stack.heads, capacity, stack.head_dim)
    return tuple(StateSpec(f"{kv}.{i}", dtype, shape, ring=True) for i in range(stack.layers) for kv in "kv")


def _temporal_rings(config: ModelConfig, dtype: str) -> tuple[StateSpec, ...]:
    if config.kv_cache == INT8_PAIRS:
        pairs = replace(config.temporal, dim=config.temporal.dim // 2)
        return _rings(pairs, "C", "float16")
    return _rings(config.temporal, "C", "int8" if config.kv_cache == INT8 else dtype)


def codec_ring_length(stack: TransformerConfig) -> int:
    """Entries of a codec's rings: those in use, and up to 7 more, because CUDA kernels read masks in groups of 8."""
    return -(-stack.capacity // 8) * 8


def _codec_state(convs: tuple[Conv, ...], mimi: MimiConfig, dtype: str) -> tuple[StateSpec, ...]:
    position = StateSpec("position", "int64", ("B",), ring=False)
    tails = tuple(StateSpec(conv.key, dtype, conv.tail_shape, ring=False) for conv in convs if conv.tail_shape)
    return (position, *tails, *_rings(mimi.transformer, codec_ring_length(mimi.transformer), dtype))


def _noise(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The noise inputs of both language graphs: see runtime/noise.py."""
    keys = (TensorSpec(name, "int64", ("B", config.num_streams)) for name in ("noise_offset", "noise_stride"))
    return TensorSpec("noise", "float32", ("B", config.noise_entries)), *keys


def graph_specs(config: ModelConfig, precision: Mapping[str, str] = FP32) -> dict[str, GraphSpec]:
    """The four graphs by name. `precision`: a name in BUILT for each graph.

    The precision decides only the dtype of the state; `config.kv_cache` that of the temporal transformer's rings. Inputs and
    outputs are float32 in every precision.
    """
    mimi, text_card, steps = config.mimi, config.text_card, config.depth_steps
    dtype = {graph: BUILT[name].activations for graph, name in precision.items()}
    pcm, codes = (
        TensorSpec("pcm", "float32", ("B", 1, config.frame_size)),
        TensorSpec("codes", "int64", ("B", CODEBOOKS)),
    )
    active = TensorSpec("active", "bool", ("B",))
    hidden = TensorSpec("hidden", "float32", ("B", config.temporal.dim))
    text_token = TensorSpec("text_token", "int64", ("B",))
    noise, encoder, decoder = _noise(config), seanet_encoder(mimi), seanet_decoder(mimi)
    specs = (
        GraphSpec(
            "mimi_encode",
            (pcm, active),
            (codes,),
            _codec_state((*encoder.convs(), downsample(mimi)), mimi, dtype["mimi_encode"]),
        ),
        GraphSpec(
            "temporal",
            (
                TensorSpec("codes", "int64", ("B", "T", config.num_streams)),
                TensorSpec("embedding", "float32", ("B", "T", config.temporal.dim)),
                TensorSpec("position", "int64", ("B",)),
                TensorSpec("forced_text", "int64", ("B",)),
                TensorSpec("replacement", "int64", ("B",)),
                *noise,
                TensorSpec("text_temperature", "float32", ("B",)),
                TensorSpec("text_top_k", "int64", ("B",)),
            ),
            (
                hidden,
                text_token,
                TensorSpec("draw", "int64", ("B",)),
                TensorSpec("text_logits", "float32", ("B", text_card)),
            ),
            _temporal_rings(config, dtype["temporal"]),
        ),
        GraphSpec(
            "depth",
            (
                hidden,
                text_token,
                TensorSpec("forced_audio", "int64", ("B", steps)),
                *noise,
                TensorSpec("audio_temperature", "float32", ("B",)),
                TensorSpec("audio_top_k", "int64", ("B",)),
            ),
            (
                TensorSpec("audio_tokens", "int64", ("B", steps)),
                TensorSpec("audio_logits", "float32", ("B", steps, config.audio_card)),
            ),
        ),
        GraphSpec(
            "mimi_decode",
            (codes, active),
            (pcm,),
            _codec_state((upsample(mimi), *decoder.convs()), mimi, dtype["mimi_decode"]),
        ),
    )
    return {
        spec.name: replace(
            spec, precision=precision[spec.name], int8_rings=config.int8_rings and spec.name in LANGUAGE_GRAPHS
        )
        for spec in specs
    }
