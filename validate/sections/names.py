"""Names of the measures that can have a tolerance, by section: `--tolerance` accepts these.

Called by `validate.validation`.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pplex.runtime.errors import ReportError
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS
from pplex.validate.sections.conversation import METRICS
from pplex.validate.sections.health import SYMPTOMS

SECTIONS = ("graphs", "drift", "codec", "streaming", "conversation")
TOLERATED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "graphs": (
            *(f"graphs.{graph}.layer_error" for graph in GRAPH_NAMES),
            *(f"graphs.{graph}.channel_error" for graph in LANGUAGE_GRAPHS),
            "graphs.temporal.window",
        ),
        "drift": tuple(
            f"drift.{name}"
            for name in (
                "self_test",
                "hidden",
                "text_kl",
                "audio_kl",
                "text_top1",
                "audio_top1",
                "window",
                "sampled",
                "voice",
            )
        ),
        "codec": tuple(
            f"codec.{name}"
            for name in (
                "code_agreement",
                "unexplained_codes",
                "boundary_distance",
                "si_sdr_db",
                "spectral_distance",
                "sample_difference",
                "onset_shift_ms",
            )
        ),
        "streaming": tuple(
            f"streaming.{name}"
            for name in ("chunked", "restored", "rows", "codec_codes", "codec_pcm", "batch_tokens", "batch_audio")
        ),
        "conversation": (
            *(f"conversation.{metric.name}" for metric in METRICS.values() if metric.better),
            "conversation.tokens_equal",
            "conversation.near_ties",
            *(f"health.{symptom}" for symptom in SYMPTOMS),
        ),
    }
)
# Values of these measures must be at least their limit.
LEAST = {
    "drift.text_top1",
    "drift.audio_top1",
    "codec.code_agreement",
    "codec.si_sdr_db",
    "streaming.batch_tokens",
    "conversation.tokens_equal",
    *(f"conversation.{metric.name}" for metric in METRICS.values() if metric.better == "higher"),
}


def check_tolerances(names: Iterable[str], sections: Iterable[str]) -> None:
    """Raise ReportError for names that no measure of these sections has."""
    known = [name for section in sections for name in TOLERATED[section]]
    if wrong := sorted(set(names) - set(known)):
        raise ReportError(f"Unknown tolerance {', '.join(map(repr, wrong))}. Known tolerances: {', '.join(known)}.")
