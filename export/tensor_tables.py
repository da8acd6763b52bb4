"""The tensors that the model needs: keys and shapes, as PersonaPlex's files have them. Used by `export`."""

from pplex.runtime.config import ModelConfig
from pplex.runtime.graphs import Conv, downsample, seanet_decoder, seanet_encoder, upsample

Shapes = dict[str, tuple[int, ...]]


def lm_tensors(config: ModelConfig, depth_sets: int) -> Shapes:
    """Every key of the language model's file and its shape, with 8 or 16 sets of depth weights (one set for a step)."""
    temporal, depth, audio_streams = config.temporal, config.depth, config.num_streams - 1
    shapes: Shapes = {"text_emb.weight": (config.text_card + 1, temporal.dim)}
    shapes |= {f"emb.{i}.weight": (config.audio_card + 1, temporal.dim) for i in range(audio_streams)}
    for i in range(temporal.layers):
        shapes |= _block(f"transformer.layers.{i}", temporal.dim, sets=1)
        shapes |= _gating(f"transformer.layers.{i}.gating", temporal.dim, temporal.hidden)
    shapes["out_norm.alpha"] = (1, 1, temporal.dim)
    shapes["text_linear.weight"] = (config.text_card, temporal.dim)
    shapes["depformer_text_emb.weight"] = (config.text_card + 1, depth.dim)
    for k in range(depth_sets - 1):
        shapes[depth_embedding(k)] = (config.audio_card + 1, depth.dim)
    shapes |= {f"depformer_in.{k}.weight": (depth.dim, temporal.dim) for k in range(depth_sets)}
    shapes |= {f"linears.{k}.weight": (config.audio_card, depth.dim) for k in range(depth_sets)}
    for i in range(depth.layers):
        shapes |= _block(f"depformer.layers.{i}", depth.dim, sets=depth_sets)
        for k in range(depth_sets):
            shapes |= _gating(f"depformer.layers.{i}.gating.{k}", depth.dim, depth.hidden)
    return shapes


def depth_embedding(k: int) -> str:
    """Key of the table that embeds codebook k for depth step k + 1."""
    return f"depformer_emb.{k}.weight"


def _block(key: str, dim: int, sets: int) -> Shapes:
    return {
        f"{key}.norm1.alpha": (1, 1, dim),
        f"{key}.norm2.alpha": (1, 1, dim),
        f"{key}.self_attn.in_proj_weight": (sets * 3 * dim, dim),
        f"{key}.self_attn.out_proj.weight": (sets * dim, dim),
    }


def _gating(key: str, dim: int, hidden: int) -> Shapes:
    return {f"{key}.linear_in.weight": (2 * hidden, dim), f"{key}.linear_out.weight": (dim, hidden)}


def mimi_tensors(config: ModelConfig) -> Shapes:
    """Every key of the codec's file and its shape."""
    mimi, shapes = config.mimi, Shapes()
    convs = (*seanet_encoder(mimi).convs(), *seanet_decoder(mimi).convs(), downsample(mimi), upsample(mimi))
    for conv in convs:
        shapes |= _conv(conv)
    for side in ("encoder", "decoder"):
        for i in range(mimi.transformer.layers):
            shapes |= _codec_layer(f"{side}_transformer.transformer.layers.{i}", mimi.dim, mimi.transformer.hidden)
    for part, books in (("rvq_first", 1), ("rvq_rest", mimi.stored_codebooks - 1)):
        shapes[f"quantizer.{part}.input_proj.weight"] = (mimi.codebook_dim, mimi.dim, 1)
        shapes[f"quantizer.{part}.output_proj.weight"] = (mimi.dim, mimi.codebook_dim, 1)
        for i in range(books):
            key = f"quantizer.{part}.vq.layers.{i}._codebook"
            shapes[f"{key}._initialized"] = (1,)
            shapes[f"{key}.cluster_usage"] = (mimi.codebook_size,)
            shapes[f"{key}.embedding_sum"] = (mimi.codebook_size, mimi.codebook_dim)
    return shapes


def _conv(conv: Conv) -> Shapes:
    inputs, outputs = (
        (conv.inputs, 1 if conv.depthwise else conv.outputs) if conv.transposed else (conv.outputs, conv.inputs)
    )
    shapes: Shapes = {f"{conv.key}.weight": (inputs, outputs, conv.kernel)}
    if conv.bias:
        shapes[f"{conv.key}.bias"] = (conv.outputs,)
    return shapes


def _codec_layer(key: str, dim: int, hidden: int) -> Shapes:
    return {
        **{f"{key}.norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")},
        **{f"{key}.layer_scale_{n}.scale": (dim,) for n in (1, 2)},
        f"{key}.self_attn.in_proj_weight": (3 * dim, dim),
        f"{key}.self_attn.out_proj.weight": (dim, dim),
        f"{key}.linear1.weight": (hidden, dim),
        f"{key}.linear2.weight": (dim, hidden),
    }
