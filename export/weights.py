"""The source of each parameter of an exported graph: checkpoint keys, and a function of their tensors.

Called by `export`, `bench` and `validate`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplex.export.checkpoint import Checkpoint
from pplex.export.depth import Depth
from pplex.export.mimi import MimiDecoder, MimiEncoder
from pplex.export.temporal import Temporal
from pplex.export.tensor_tables import depth_embedding
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.errors import CheckpointError
from pplex.runtime.graphs import Seanet, downsample, seanet_decoder, seanet_encoder, upsample
from pplex.runtime.precision import BUILT, FP32

MODULES: dict[str, type[nn.Module]] = {
    "mimi_encode": MimiEncoder,
    "temporal": Temporal,
    "depth": Depth,
    "mimi_decode": MimiDecoder,
}


@dataclass(frozen=True)
class ParameterSource:
    """A parameter's checkpoint keys, and the function that computes the parameter from their tensors.

    part: which part of how many equal parts of each tensor's rows is read.
    """

    keys: tuple[str, ...]
    make: Callable[..., Tensor]
    part: tuple[int, int] = (0, 1)

    def read(self, checkpoint: Checkpoint, keep_16_bits: bool = False) -> Tensor:
        """The parameter in float32, contiguous. `keep_16_bits`: in its stored dtype if that has 16 bits."""
        read = self.make(*(checkpoint.read(key, *self.part) for key in self.keys))
        return (read if keep_16_bits and read.dtype.itemsize == 2 else read.to(torch.float32)).contiguous()


ParameterSources = Iterator[tuple[str, ParameterSource]]


def sources(graph: str, config: ModelConfig, checkpoint: Checkpoint) -> dict[str, ParameterSource]:
    """The source of each parameter of a graph. Raises CheckpointError if the checkpoint lacks a depth step's table."""
    table = {
        "mimi_encode": _mimi_encode(config),
        "temporal": _temporal(config),
        "depth": _depth(config, checkpoint.depth_sets),
        "mimi_decode": _mimi_decode(config),
    }
    found = dict(table[graph])
    missing = sorted(key for source in found.values() for key in source.keys if key not in checkpoint.tensors)
    if missing:
        raise CheckpointError(
            f"The checkpoint holds {checkpoint.depth_sets} depth steps; {config.depth_steps} cannot be exported, "
            f"because it lacks {', '.join(missing)}.\nLeave --depth-steps out: conversations need {CODEBOOKS} steps."
        )
    return found


def parameters(graph: str, config: ModelConfig, precision: Mapping[str, str] = FP32) -> dict[str, Tensor]:
    """The parameters of one graph by name, without data: their shapes, and the dtypes of the computation."""
    with torch.device("meta"):
        return dict(MODULES[graph](config, activations(graph, precision)).named_parameters())


def activations(graph: str, precision: Mapping[str, str]) -> torch.dtype:
    """The dtype between the layers of a graph."""
    dtype: torch.dtype = getattr(torch, BUILT[precision[graph]].activations)
    return dtype


def load(graph: str, checkpoint: Checkpoint, config: ModelConfig | None = None) -> nn.Module:
    """The graph's torch module in float32 with the checkpoint's weights, ready to call."""
    config = config or checkpoint.config
    with torch.device("meta"):
        module = MODULES[graph](config)
    weights = {name: source.read(checkpoint) for name, source in sources(graph, config, checkpoint).items()}
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval().requires_grad_(False)


class PartLoader:
    """Fills parts of a graph's module that have no data yet; `progress` gets the bytes of float32 weights read.

    keep_16_bits: matrices stay in their stored dtype, see `Linear`; everything else is in float32.
    """

    def __init__(
        self,
        graph: str,
        checkpoint: Checkpoint,
        config: ModelConfig,
        progress: Callable[[int], None] = lambda nbytes: None,
        keep_16_bits: bool = False,
    ):
        self._sources, self._checkpoint = sources(graph, config, checkpoint), checkpoint
        self._progress, self._keep_16_bits = progress, keep_16_bits

    def __call__(self, module: nn.Module, prefix: str) -> None:
        """Give `module` the graph's parameters whose names start with `prefix`.

        If the prefix ends with a dot, `module` is the part of that name, and its own names have no prefix.
        """
        state = {}
        for name, source in self._sources.items():
            if name.startswith(prefix):
                is_matrix = name.endswith(".weight") and "norm" not in name
                tensor = source.read(self._checkpoint, self._keep_16_bits and is_matrix)
                state[name.removeprefix(prefix) if prefix.endswith(".") else name] = tensor
                self._progress(tensor.numel() * torch.float32.itemsize)
        module.load_state_dict(state, strict=prefix[-1:] in (".", ""), assign=True)
        module.requires_grad_(False)


def _same(*keys: str) -> ParameterSource:
    return ParameterSource(keys, lambda tensor: tensor)


def _flat(key: str) -> ParameterSource:
    return ParameterSource((key,), torch.Tensor.flatten)


def _linear(key: str) -> ParameterSource:
    return ParameterSource((key,), torch.t)


def _linear_part(key: str, part: int, parts: int) -> ParameterSource:
    return ParameterSource((key,), torch.t, (part, parts))


def _pointwise(key: str) -> ParameterSource:
    return ParameterSource((key,), lambda tensor: tensor[..., 0].t())


def _gating(name: str, key: str) -> ParameterSources:
    for part in ("linear_in", "linear_out"):
        yield f"{name}.{part}.weight", _linear(f"{key}.{part}.weight")


def _temporal(config: ModelConfig) -> ParameterSources:
    yield "text_emb", _same("text_emb.weight")
    keys = tuple(f"emb.{i}.weight" for i in range(config.num_streams - 1))
    yield "audio_emb", ParameterSource(keys, lambda *tables: torch.cat(tables))
    for i in range(config.temporal.layers):
        name, key = f"layers.{i}", f"transformer.layers.{i}"
        yield f"{name}.norm1.weight", _flat(f"{key}.norm1.alpha")
        yield f"{name}.norm2.weight", _flat(f"{key}.norm2.alpha")
        yield f"{name}.attention.in_proj.weight", _linear(f"{key}.self_attn.in_proj_weight")
        yield f"{name}.attention.out_proj.weight", _linear(f"{key}.self_attn.out_proj.weight")
        yield from _gating(f"{name}.gating", f"{key}.gating")
    yield "out_norm.weight", _flat("out_norm.alpha")
    yield "text_linear.weight", _linear("text_linear.weight")


def _depth(config: ModelConfig, depth_sets: int) -> ParameterSources:
    for i in range(config.depth.layers):
        for norm in ("norm1", "norm2"):
            yield f"{norm}.{i}.weight", _flat(f"depformer.layers.{i}.{norm}.alpha")
    for k in range(config.depth_steps):
        own = k % depth_sets  # from 8 sets, the reference's loader makes 16: it copies step k to step k + 8
        yield f"steps.{k}.input.weight", _linear(f"depformer_in.{own}.weight")
        yield f"steps.{k}.emb", _same("depformer_text_emb.weight" if k == 0 else _depth_embedding(k - 1, depth_sets))
        yield f"steps.{k}.output.weight", _linear(f"linears.{own}.weight")
        for i in range(config.depth.layers):
            key = f"depformer.layers.{i}"
            yield f"steps.{k}.in_proj.{i}.weight", _linear_part(f"{key}.self_attn.in_proj_weight", own, depth_sets)
            yield f"steps.{k}.out_proj.{i}.weight", _linear_part(f"{key}.self_attn.out_proj.weight", own, depth_sets)
            yield from _gating(f"steps.{k}.gating.{i}", f"{key}.gating.{own}")


def _depth_embedding(k: int, depth_sets: int) -> str:
    """Key of the table for codebook k. With 8 sets, tables 8, 9, ... are copies of 0, 1, ...; table 7 is not copied."""
    return depth_embedding(k if k < depth_sets else k - depth_sets)


def _mimi_encode(config: ModelConfig) -> ParameterSources:
    yield from _seanet(seanet_encoder(config.mimi))
    yield from _codec_transformer(config, "encoder_transformer.transformer")
    yield "downsample.weight", _same(f"{downsample(config.mimi).key}.weight")
    yield from _quantizer("input_proj")


def _mimi_decode(config: ModelConfig) -> ParameterSources:
    yield from _quantizer("output_proj")
    yield "upsample.weight", _same(f"{upsample(config.mimi).key}.weight")
    yield from _codec_transformer(config, "decoder_transformer.transformer")
    yield from _seanet(seanet_decoder(config.mimi))


def _seanet(layout: Seanet) -> ParameterSources:
    named = [("first", layout.first), ("last", layout.last)]
    for i, stage in enumerate(layout.stages):
        named += [(f"stages.{i}.resample", stage.resample)]
        named += [(f"stages.{i}.residual.convs.{j}", conv) for j, conv in enumerate(stage.residual)]
    for name, conv in named:
        for part in ("weight", "bias"):
            yield f"seanet.{name}.{part}", _same(f"{conv.key}.{part}")


def _codec_transformer(config: ModelConfig, key: str) -> ParameterSources:
    for i in range(config.mimi.transformer.layers):
        name, layer = f"transformer.layers.{i}", f"{key}.layers.{i}"
        for n in (1, 2):
            yield f"{name}.norm{n}.weight", _same(f"{layer}.norm{n}.weight")
            yield f"{name}.norm{n}.bias", _same(f"{layer}.norm{n}.bias")
            yield f"{name}.scale{n}", _same(f"{layer}.layer_scale_{n}.scale")
            yield f"{name}.linear{n}.weight", _linear(f"{layer}.linear{n}.weight")
        yield f"{name}.attention.in_proj.weight", _linear(f"{layer}.self_attn.in_proj_weight")
        yield f"{name}.attention.out_proj.weight", _linear(f"{layer}.self_attn.out_proj.weight")


def _quantizer(projection: str) -> ParameterSources:
    yield "quantizer.semantic.weight", _pointwise(f"quantizer.rvq_first.{projection}.weight")
    yield "quantizer.acoustic.weight", _pointwise(f"quantizer.rvq_rest.{projection}.weight")
    yield "quantizer.codebooks.0", _codebook("quantizer.rvq_first.vq.layers.0._codebook")
    for i in range(CODEBOOKS - 1):
        yield f"quantizer.codebooks.{i + 1}", _codebook(f"quantizer.rvq_rest.vq.layers.{i}._codebook")


def _codebook(key: str) -> ParameterSource:
    """The entries are running means: the sum of an entry's vectors over its usage."""
    return ParameterSource(
        (f"{key}.embedding_sum", f"{key}.cluster_usage"),
        lambda total, usage: total.float() / usage.float().clamp(min=1e-5)[:, None],
    )
