"""The limits of validation: the allowed difference from float32, for each graph and precision. Part of its GraphSpec.

They separate a format's own rounding from a defect, which is much larger. Each limit is above the values of random models,
mostly by a factor of two or more; one of the models has channels with large values. See docs/validation.md.
"""

from collections.abc import Mapping
from types import MappingProxyType

Limits = Mapping[str, float]

# layer_error: relative error of a half layer's addition, for the engine's own input. A half layer is an attention or a gated
# block, with its norm
# hidden: 1 - cosine of hidden states, mean
# channel_error: the same for the worst channel
# rounding: relative error of a hidden state whose sums are computed in another order
# *_kl: mean divergence of the distributions, in nats; *_top1: least share of steps with the same most probable token
_TEMPORAL = {
    "fp32": {
        "layer_error": 1e-5,
        "channel_error": 1e-5,
        "hidden": 1e-10,
        "rounding": 1e-5,
        "text_kl": 1e-6,
        "text_top1": 1.0,
    },
    "fp16": {"layer_error": 5e-3, "channel_error": 0.01, "hidden": 1e-6, "rounding": 0.01, "text_kl": 1e-5},
    "bf16": {"layer_error": 0.05, "channel_error": 0.1, "hidden": 1e-4, "rounding": 0.05, "text_kl": 1e-3},
    "fp8": {"layer_error": 0.3, "channel_error": 0.5, "hidden": 3e-3, "rounding": 0.1, "text_kl": 0.03},
    "int8": {"layer_error": 0.07, "channel_error": 0.15, "hidden": 3e-4, "rounding": 0.02, "text_kl": 3e-3},
    "int4": {"layer_error": 0.5, "channel_error": 0.9, "hidden": 0.016, "rounding": 0.02, "text_kl": 0.12},
}
_DEPTH = {
    "fp32": {"layer_error": 1e-5, "channel_error": 1e-5, "audio_kl": 1e-6, "audio_top1": 1.0},
    "fp16": {"layer_error": 5e-3, "channel_error": 0.01, "audio_kl": 1e-4},
    "bf16": {"layer_error": 0.05, "channel_error": 0.1, "audio_kl": 0.02},
    "fp8": {"layer_error": 0.3, "channel_error": 0.5, "audio_kl": 0.3},
    "int8": {"layer_error": 0.07, "channel_error": 0.15, "audio_kl": 0.03},
    "int4": {"layer_error": 0.5, "channel_error": 0.9, "audio_kl": 1.5},
}
# agreement: least share of equal codes; boundary: distance of a latent to the next code's region, relative to its length
_CODEC = {
    "fp32": {
        "layer_error": 1e-5,
        "agreement": 0.98,
        "boundary": 1e-4,
        "si_sdr_db": 80.0,
        "spectral_distance": 1e-3,
        "sample_difference": 1e-4,
        "onset_shift_ms": 0.5,
    },
    "fp16": {
        "layer_error": 0.01,
        "agreement": 0.75,
        "boundary": 8e-3,
        "si_sdr_db": 42.0,
        "spectral_distance": 0.046,
        "sample_difference": 4e-3,
        "onset_shift_ms": 0.5,
    },
}

# Some matrices of a mixed precision have 4 bits, and few are in blocks of 128.
_TEMPORAL["mixed"], _DEPTH["mixed"] = _TEMPORAL["int4"], _DEPTH["int4"]
# Rings in int8: their error comes beside that of the precision, so these are added.
_INT8_RINGS = {
    "temporal": {"layer_error": 0.04, "channel_error": 0.1, "hidden": 3e-4, "rounding": 0.02, "text_kl": 1e-3},
    "depth": {"audio_kl": 0.03},
}

_BY_GRAPH = {"mimi_encode": _CODEC, "temporal": _TEMPORAL, "depth": _DEPTH, "mimi_decode": _CODEC}


def tolerances(graph: str, precision: str, int8_rings: bool = False) -> Limits:
    """Limits by the name of the measure. `int8_rings`: the KV cache is in 8 bits."""
    limits = _BY_GRAPH[graph][precision]
    if not int8_rings:
        return MappingProxyType(limits)
    more = _INT8_RINGS[graph]
    judged = {
        name: limit for name, limit in limits.items() if not name.endswith("_top1")
    }  # these are for exact results
    return MappingProxyType({name: limit + more.get(name, 0.0) for name, limit in judged.items()})
