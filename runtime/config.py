"""The model's sizes: one frozen description, read by the exporter, the engines and the runtime."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from pplex.runtime.errors import ConfigError

SAMPLE_RATE_HZ = 24_000

# Codes of half a second of silence, and of a 440 Hz tone, which the user's streams have during priming (original code:
# models/lm.py). The codes belong to the released codec; synthetic checkpoints keep them.
SILENCE_CODES = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
SINE_CODES = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
SILENCE_FRAMES = 6

# A PersonaPlex model begins a conversation with a prompt: a voice, a persona, silence. A Moshi model begins with nothing.
PERSONAPLEX, MOSHI = FAMILIES = ("personaplex", "moshi")
CODEBOOKS = 8  # codebooks per speaker in a conversation
END_OF_PADDING = 0  # the text token that a model may put before a word (EPAD)
MIN_CAPACITY = 32  # the fewest context steps of the temporal transformer: enough for a prompt
MAX_CANDIDATES = 512  # the largest top-k
MIN_NOISE = 1 << 16  # draws of noise that each session has: see runtime/noise.py

# What the temporal transformer's rings hold: values of its activations' dtype, or int8 with one scale per channel. TensorRT
# writes rings of 16 or 32 bits only, so in graphs for engines each float16 holds two int8: see export/int8_rings.py.
LIKE_ACTIVATIONS, INT8, INT8_PAIRS = KV_CACHES = ("like-activations", "int8", "int8-pairs")


def _swiglu_hidden(dim: int, feedforward: int) -> int:
    """Hidden size of a gated block with as many weights as a plain feed-forward block of size `feedforward`."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


@dataclass(frozen=True)
class TransformerConfig:
    """One transformer stack; `hidden` is the width inside its feed-forward block, `capacity` its ring in steps."""

    dim: int
    layers: int
    heads: int
    hidden: int
    capacity: int
    max_period: float

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class MimiConfig:
    """The codec: SEANet, two transformers at 25 Hz, and a split residual quantizer at 12.5 Hz."""

    dim: int
    filters: int
    ratios: tuple[int, ...]  # decoder order; the encoder uses them reversed
    kernel: int
    residual_kernel: int
    last_kernel: int
    compress: int
    transformer: TransformerConfig
    codebook_dim: int
    codebook_size: int
    stored_codebooks: int  # in the checkpoint; a conversation uses the first CODEBOOKS
    window: int  # steps, up to the end of a frame, that a step of the transformers reads

    @property
    def hop(self) -> int:
        """Samples per transformer step."""
        return math.prod(self.ratios)

    @property
    def steps_per_frame(self) -> int:
        return 2

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return self.hop * self.steps_per_frame


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a shape. Source of the released values: the reference's models/loaders.py."""

    temporal: TransformerConfig
    depth: TransformerConfig
    mimi: MimiConfig
    text_card: int
    audio_card: int
    text_padding: int
    delays: tuple[int, ...]
    stored_depth_sets: int  # sets of depth weights, one per step, by config.json; the file may have only CODEBOOKS
    family: str = PERSONAPLEX  # a name in FAMILIES
    depth_steps: int = CODEBOOKS  # steps of the exported depth graph: CODEBOOKS, or all for teacher-forced checks
    kv_cache: str = LIKE_ACTIVATIONS  # a name in KV_CACHES

    @property
    def num_streams(self) -> int:
        """Text, agent audio, user audio."""
        return len(self.delays)

    @property
    def takes_prompt(self) -> bool:
        """Whether a conversation begins with a prompt: a voice, a persona, silence."""
        return self.family != MOSHI

    @property
    def int8_rings(self) -> bool:
        """Whether the rings of the temporal transformer hold int8, one by one or in pairs."""
        return self.kv_cache != LIKE_ACTIVATIONS

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def frame_size(self) -> int:
        return self.mimi.frame_size

    @property
    def frame_ms(self) -> float:
        return 1000 * self.frame_size / SAMPLE_RATE_HZ

    @property
    def initial_tokens(self) -> tuple[int, ...]:
        """The token of every stream before its first frame."""
        return (self.text_card,) + (self.audio_card,) * (self.num_streams - 1)

    @property
    def noise_entries(self) -> int:
        """Draws in a session's table of noise: a power of two, at least one entry for every token of every stream."""
        tokens = self.text_card + (self.num_streams - 1) * self.audio_card
        return max(MIN_NOISE, 1 << (tokens - 1).bit_length())

    def as_moshi(self) -> "ModelConfig":
        """The same sizes as a Moshi model, whose full rings hide nothing: `context` is its window.

        Source: Kyutai's package moshi 0.2.13. Raises ConfigError for delays that would need a prompt.
        """
        if self.max_delay > 1:
            raise ConfigError(
                "delays must be 0 or 1 in a Moshi model: without a prompt, later codes are not known yet."
            )
        temporal = replace(self.temporal, capacity=self.temporal.capacity + 1)  # one entry is never in use
        return replace(self, family=MOSHI, temporal=temporal, mimi=replace(self.mimi, window=self.mimi.window + 1))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`; raises ConfigError on unknown or missing keys.

        Bundles of earlier versions have no `kv_cache`.
        """
        config: ModelConfig = _from_dict(cls, {"kv_cache": LIKE_ACTIVATIONS, **data})
        if config.kv_cache not in KV_CACHES:
            raise ConfigError(f"unknown kv_cache: {config.kv_cache!r} (known: {', '.join(KV_CACHES)}).")
        return config

    @classmethod
    def from_arguments(cls, lm: Mapping[str, Any], mimi: Mapping[str, Mapping[str, Any]]) -> "ModelConfig":
        """Sizes from the reference's arguments, those of the codec by part. Missing arguments have the released values.

        Raises ConfigError for unknown arguments, and for values that do not fit together or choose another architecture.
        """
        try:
            unknown = sorted(set(mimi) - set(MIMI_PARTS))
            if unknown:
                raise ConfigError(f"unknown parts of mimi: {', '.join(unknown)}.")
            parts = [_merged(RELEASED_ARGUMENTS[name], mimi.get(name, {}), f"mimi.{name}") for name in MIMI_PARTS]
            return _from_arguments(_merged(RELEASED_ARGUMENTS["lm"], lm, "lm"), *parts)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(f"a size has the wrong type: {error}.") from error


def _from_dict(cls: type, data: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in fields(cls)}
    wrong = sorted(set(known) ^ set(data))
    if wrong:
        raise ConfigError(f"{cls.__name__}: unknown or missing keys: {', '.join(wrong)}.")
    nested = {
        "temporal": TransformerConfig,
        "depth": TransformerConfig,
        "mimi": MimiConfig,
        "transformer": TransformerConfig,
    }
    values = {
        k: _from_dict(nested[k], v) if k in nested else tuple(v) if isinstance(v, list) else v for k, v in data.items()
    }
    return cls(**values)


# The released model's constructor arguments, with the reference's names (models/loaders.py). config.json uses the same
# names, and overrides these values key by key.
MIMI_PARTS = ("seanet", "transformer", "quantizer")
RELEASED_ARGUMENTS: dict[str, dict[str, Any]] = {
    "lm": {
        "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 16, "card": 2048,
        "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
        "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
        "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
        "depformer_causal": True, "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
        "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
        "depformer_weights_per_step": True, "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
    },
    "seanet": {
        "channels": 1, "dimension": 512, "causal": True, "n_filters": 64, "n_residual_layers": 1, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7, "residual_kernel_size": 3,
        "last_kernel_size": 3, "norm": "none", "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "transformer": {
        "d_model": 512, "num_heads": 8, "num_layers": 8, "causal": True, "layer_scale": 0.01, "context": 250,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope",
        "dim_feedforward": 2048, "input_dimension": 512, "output_dimensions": [512],
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048, "input_dimension": 512, "output_dimension": 512},
}  # fmt: skip

# Arguments that set sizes. All others set the architecture, and only the released architecture is implemented.
_SIZES = {
    "lm": {
        "dim", "text_card", "existing_text_padding_id", "dep_q", "card", "num_heads", "num_layers", "hidden_scale",
        "context", "max_period", "depformer_dim", "depformer_dim_feedforward", "depformer_num_heads", "depformer_num_layers",
        "depformer_context", "depformer_max_period", "delays",
    },
    "mimi.seanet": {
        "dimension", "n_filters", "compress", "kernel_size", "residual_kernel_size", "last_kernel_size", "ratios",
        "dilation_base",
    },
    "mimi.transformer": {
        "d_model", "num_heads", "num_layers", "layer_scale", "context", "max_period", "dim_feedforward", "input_dimension",
        "output_dimensions",
    },
    "mimi.quantizer": {"dimension", "n_q", "bins", "input_dimension", "output_dimension"},
}  # fmt: skip


def _merged(released: Mapping[str, Any], given: Mapping[str, Any], part: str) -> dict[str, Any]:
    unknown = sorted(set(given) - set(released))
    if unknown:
        raise ConfigError(f"unknown keys in {part}: {', '.join(unknown)}.")
    other = [
        f"{part}.{key} is {value!r}, and only {released[key]!r} is implemented"
        for key, value in given.items()
        if key not in _SIZES[part] and value != released[key]
    ]
    if other:
        raise ConfigError("; ".join(other) + ".")
    return {**released, **given}


def _from_arguments(
    lm: Mapping[str, Any], seanet: Mapping[str, Any], transformer: Mapping[str, Any], quantizer: Mapping[str, Any]
) -> ModelConfig:
    config = ModelConfig(
        temporal=TransformerConfig(
            dim=lm["dim"],
            layers=lm["num_layers"],
            heads=lm["num_heads"],
            hidden=_swiglu_hidden(lm["dim"], int(lm["hidden_scale"] * lm["dim"])),
            capacity=lm["context"],
            max_period=lm["max_period"],
        ),
        depth=TransformerConfig(
            dim=lm["depformer_dim"],
            layers=lm["depformer_num_layers"],
            heads=lm["depformer_num_heads"],
            hidden=_swiglu_hidden(lm["depformer_dim"], lm["depformer_dim_feedforward"]),
            # The reference ignores depformer_context: it makes 16 steps of any checkpoint, with a ring of 16 entries. A full
            # ring hides its oldest entry. With 8 entries, step 7 would not see entry 0, which it sees in Kyutai's code.
            capacity=2 * CODEBOOKS,
            max_period=lm["depformer_max_period"],
        ),
        mimi=MimiConfig(
            dim=seanet["dimension"],
            filters=seanet["n_filters"],
            ratios=tuple(seanet["ratios"]),
            kernel=seanet["kernel_size"],
            residual_kernel=seanet["residual_kernel_size"],
            last_kernel=seanet["last_kernel_size"],
            compress=seanet["compress"],
            transformer=TransformerConfig(
                dim=transformer["d_model"],
                layers=transformer["num_layers"],
                heads=transformer["num_heads"],
                hidden=transformer["dim_feedforward"],
                capacity=transformer["context"],
                max_period=transformer["max_period"],
            ),
            codebook_dim=quantizer["dimension"],
            codebook_size=quantizer["bins"],
            stored_codebooks=quantizer["n_q"],
            window=transformer["context"] - 1,  # a full ring hides its oldest step: see export/layers.py, codec_mask
        ),
        text_card=lm["text_card"],
        audio_card=lm["card"],
        text_padding=lm["existing_text_padding_id"],
        delays=tuple(lm["delays"]),
        stored_depth_sets=lm["dep_q"],
    )
    _check(config, widths=(transformer["d_model"], transformer["input_dimension"], *transformer["output_dimensions"],
                           quantizer["input_dimension"], quantizer["output_dimension"]))  # fmt: skip
    return config


def _check(config: ModelConfig, widths: tuple[int, ...]) -> None:
    """Raise ConfigError that lists every inconsistency."""
    mimi = config.mimi
    stacks = {"lm": config.temporal, "depformer": config.depth, "mimi.transformer": mimi.transformer}
    uneven = [name for name, value in _sizes(config) if not isinstance(value, int)]
    rules = {
        # The shortest prompt must be longer than every delay. Otherwise the first frame of a conversation would lack codes
        # of some streams, and the decoder needs all.
        f"delays must be {2 * CODEBOOKS + 1} numbers from 0 to {2 * SILENCE_FRAMES - 1}": len(config.delays)
        == 2 * CODEBOOKS + 1
        and min(config.delays) >= 0
        and max(config.delays) <= 2 * SILENCE_FRAMES - 1,
        f"dep_q must be {CODEBOOKS} or {2 * CODEBOOKS}": config.stored_depth_sets in (CODEBOOKS, 2 * CODEBOOKS),
        f"every size must be a whole number ({', '.join(uneven)})": not uneven,
        f"card must be more than the codes of silence and tone need ({max(SILENCE_CODES + SINE_CODES)})": config.audio_card
        > max(SILENCE_CODES + SINE_CODES),
        f"context must be at least {MIN_CAPACITY} steps, to hold a prompt": config.temporal.capacity >= MIN_CAPACITY,
        "mimi.transformer.context must be at least 4 steps": mimi.transformer.capacity >= 4,
        "max_period must be more than 0": min(s.max_period for s in stacks.values()) > 0,
        "the codec's kernels, filters, compress and ratios must be positive": len(mimi.ratios) > 0
        and min(mimi.filters, mimi.compress, mimi.residual_kernel, *mimi.ratios) > 0,
        "kernel_size and last_kernel_size must be at least 2": min(mimi.kernel, mimi.last_kernel) > 1,
        "card must equal quantizer.bins": config.audio_card == mimi.codebook_size,
        f"quantizer.n_q must be at least {CODEBOOKS}": mimi.stored_codebooks >= CODEBOOKS,
        f"the codec's widths must all be seanet.dimension ({mimi.dim})": set(widths) == {mimi.dim},
        "text padding must be a text token": 0 <= config.text_padding < config.text_card,
        "mimi.transformer.context must be a multiple of the 2 steps of a frame": mimi.transformer.capacity % 2 == 0,
        **{f"{name}: every size must be positive": min(s.dim, s.layers, s.heads, s.hidden, s.capacity) > 0
           for name, s in stacks.items()},
        **{f"{name}: heads must divide the width into even head sizes": s.heads > 0 and s.dim % (2 * s.heads) == 0
           for name, s in stacks.items()},
    }  # fmt: skip
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ConfigError("; ".join(broken) + ".")


def _sizes(config: Any) -> Iterator[tuple[str, Any]]:
    """Every size, by name, including those of the parts."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _sizes(value)
        elif isinstance(value, tuple):
            yield from ((field.name, item) for item in value)
        elif field.name not in ("max_period", "family", "kv_cache"):
            yield field.name, value


RELEASED = _from_arguments(*RELEASED_ARGUMENTS.values())
