"""The codec section: do the codec's engines encode and decode like the float32 reference, also as a stream?

Called by `validate.validation`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from pplex.export.checkpoint import Checkpoint
from pplex.export.mimi import MimiEncoder
from pplex.export.synth_codec import stream_codec
from pplex.export.weights import load
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import CODEBOOKS, SAMPLE_RATE_HZ, ModelConfig
from pplex.runtime.errors import AudioError
from pplex.runtime.graphs import GraphSpec
from pplex.runtime.stages import Stages
from pplex.validate.boundaries import ComparedCodes, compare_codes
from pplex.validate.golden import decode, encode
from pplex.validate.offline_codec import decode_at_once, latents_at_once
from pplex.validate.report.schema import Measure, Plot, Section, Series, Table, Tolerance
from pplex.validate.signal import OnsetShift, onset_shift_ms, si_sdr_db, spectral_distance

UNEXPLAINED, LEAST = "codec.unexplained_codes", ("agreement", "si_sdr_db")

FLOAT32_LATENT = (
    "sums in another order move a float32 latent by 1e-6 of its length; half precision moves it by 1e-3, and so does "
    "TF32, which has as few bits"
)
FLOAT32_SOUND = (
    "random codecs in float32 with sums in another order reached 118 to 128 dB and 8e-7 of full scale, and in half "
    "precision 54 to 60 dB; differences 80 dB below the sound are inaudible"
)
HALF = "four times the worst of three random codecs in half precision, one of them of the released size"
ATTACK = (
    "a codec in half precision once made attacks 20 ms softer. Only listeners noticed; this measure gives about 10 ms"
)

# The reasons for the tolerances of a codec's GraphSpec, by precision.
REASONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "fp32": {
            "agreement": "near ties are rare, but after one, all later codes of the frame may differ",
            "boundary": FLOAT32_LATENT,
            "si_sdr_db": FLOAT32_SOUND,
            "spectral_distance": FLOAT32_SOUND,
            "sample_difference": FLOAT32_SOUND,
            "onset_shift_ms": ATTACK,
        },
        "fp16": {
            "agreement": f"{HALF}: 6 % of the codes",
            "boundary": f"{HALF}: 1.9e-3 of a latent's length",
            "si_sdr_db": f"{HALF}: 54 dB",
            "spectral_distance": f"{HALF}: 0.0115",
            "sample_difference": f"{HALF}: 1e-3 of full scale",
            "onset_shift_ms": ATTACK,
        },
    }
)
NO_TIE = "every code that differs must be a near tie, see codec.boundary_distance"
NO_ONSETS = "The decoded recording has no steep onset, so the shift of onsets was not measured."
QUIETEST_DB = -160.0  # of the plot; lower levels are drawn at this level


@dataclass(frozen=True)
class Sounds:
    """The sound of two decoders for the same codes, [F * 1920] each."""

    got: Floats
    expected: Floats

    @property
    def audible(self) -> tuple[Floats, Floats]:
        """Both minus the reference's mean. A constant is inaudible, but it would count as signal."""
        mean = self.expected.mean()
        return self.got - mean, self.expected - mean


def codec_section(bundle: Bundle, checkpoint: Checkpoint, stages: Stages, pcm: Floats) -> Section:
    """Compare the bundle's codec, in slot 0 of `stages`, with the float32 reference, both frame by frame, on pcm [F, 1920].

    `checkpoint` is the one that the bundle was built from. Raises AudioError for unusable samples.
    """
    config, hearing, speaking = checkpoint.config, *_tolerances(bundle)
    codes, sounds = _compared(checkpoint, stages, pcm, hearing, _stream_latents, _stream_pcm)
    shift = onset_shift_ms(*sounds.audible)
    return Section(
        "codec",
        "The codec",
        "Does the codec encode and decode like the reference?",
        (*_code_measures(codes, hearing), *sound_measures(sounds, shift, config, speaking)),
        (_code_table(codes),),
        (_agreement_plot(codes), _level_plot(sounds, config), *_onset_plots(shift)),
        () if shift.onsets else (NO_ONSETS,),
    )


def codec_streaming_measures(
    bundle: Bundle, checkpoint: Checkpoint, stages: Stages, pcm: Floats
) -> tuple[Measure, ...]:
    """Compare the bundle's codec frame by frame with the reference on the whole recording pcm [F, 1920] at once.

    Arguments and errors as in `codec_section`.
    """
    config, hearing, speaking = checkpoint.config, *_tolerances(bundle)
    codes, sounds = _compared(checkpoint, stages, pcm, hearing, latents_at_once, decode_at_once)
    return (
        _unexplained("streaming.codec_codes", codes, "the reference with the whole recording encoded at once"),
        _sample_difference(
            "streaming.codec_pcm", sounds, config, "the reference with all codes decoded at once", speaking
        ),
    )


def codec_tolerances(spec: GraphSpec) -> dict[str, Tolerance]:
    """Tolerances of a codec graph, by measure."""
    reasons = REASONS[spec.precision]
    return {name: Tolerance(spec.tolerances[name], reason, name in LEAST) for name, reason in reasons.items()}


def _tolerances(bundle: Bundle) -> tuple[dict[str, Tolerance], dict[str, Tolerance]]:
    """Tolerances of the encoder and of the decoder."""
    return codec_tolerances(bundle.specs["mimi_encode"]), codec_tolerances(bundle.specs["mimi_decode"])


# Codes and sounds.


def _compared(
    checkpoint: Checkpoint,
    stages: Stages,
    pcm: Floats,
    hearing: Mapping[str, Tolerance],
    latents_of: Callable[[MimiEncoder, ModelConfig, Floats], Tensor],
    pcm_of: Callable[[Checkpoint, Tokens], Floats],
) -> tuple[ComparedCodes, Sounds]:
    """The codes of a recording and the sound of its reference codes, each from slot 0 and from the reference."""
    encoder, pcm = _encoder(checkpoint), _usable(pcm, checkpoint.config)
    stages.reset(0, len(pcm))
    latents = latents_of(encoder, checkpoint.config, pcm)
    expected = encoder.quantizer.encode(latents).numpy()
    codes = compare_codes(encoder.quantizer, latents, encode(stages, pcm), expected, hearing["boundary"].limit)
    return codes, Sounds(decode(stages, expected), pcm_of(checkpoint, expected))


def _usable(pcm: Floats, config: ModelConfig) -> Floats:
    """The samples as float32. Raises AudioError."""
    if pcm.ndim != 2 or pcm.shape[1] != config.frame_size or not len(pcm) or not np.isfinite(pcm).all():
        raise AudioError(
            f"The codec needs a recording of whole frames [F, {config.frame_size}] with finite samples; this one is "
            f"{list(pcm.shape)} with {int((~np.isfinite(pcm)).sum())} samples that are not finite."
        )
    return np.ascontiguousarray(pcm, np.float32)


def _encoder(checkpoint: Checkpoint) -> MimiEncoder:
    encoder = load("mimi_encode", checkpoint)
    assert isinstance(encoder, MimiEncoder)
    return encoder


@torch.inference_mode()
def _stream_latents(encoder: MimiEncoder, config: ModelConfig, pcm: Floats) -> Tensor:
    """The reference's latents [F, dim]."""
    return stream_codec("mimi_encode", config, encoder.latent, torch.from_numpy(pcm)[None, :, None])[0]


@torch.inference_mode()
def _stream_pcm(checkpoint: Checkpoint, codes: Tokens) -> Floats:
    """The reference's sound [F * 1920] of codes [F, 8]."""
    decoder = load("mimi_decode", checkpoint)
    return stream_codec("mimi_decode", checkpoint.config, decoder, torch.from_numpy(codes)[None]).flatten().numpy()


# Measures.


def _code_measures(codes: ComparedCodes, tolerances: Mapping[str, Tolerance]) -> Iterator[Measure]:
    agreement, largest = 1 - codes.differs.mean(axis=0), codes.largest
    yield Measure(
        "codec.code_agreement",
        1 - float(codes.differs.mean()),
        "of the codes",
        "Share of the recording's codes that equal the reference's.",
        tolerances["agreement"],
        _lowest(agreement),
    )
    yield _unexplained(UNEXPLAINED, codes, "the reference")
    yield Measure(
        "codec.boundary_distance",
        float(largest.max()),
        "of the latent's length",
        "The largest distance that the reference's latent must move to give the engine's code. The engine's latent is off "
        "by at least as much.",
        tolerances["boundary"],
        f"codebook {largest.argmax()}" if largest.any() else "",
    )


def _unexplained(name: str, codes: ComparedCodes, reference: str) -> Measure:
    wrong = codes.unexplained.sum(axis=0)
    return Measure(
        name,
        int(wrong.sum()),
        "codes",
        f"Codes that differ from {reference} and are not near ties. Later codes of the same frame do not count.",
        Tolerance(0, NO_TIE),
        ", ".join(f"codebook {i}: {count}" for i, count in enumerate(wrong) if count),
    )


def sound_measures(
    sounds: Sounds, shift: OnsetShift, config: ModelConfig, tolerances: Mapping[str, Tolerance]
) -> Iterator[Measure]:
    """Distances between the sounds of two decoders; `shift` is the shift of their onsets."""
    got, expected = sounds.audible
    said = "The same codes decoded: power of the reference's sound over that of the difference, with matched levels."
    yield Measure("codec.si_sdr_db", si_sdr_db(got, expected), "dB", said, tolerances["si_sdr_db"])
    distance = spectral_distance(got, expected).total
    said = "The same codes decoded: spectral convergence and mean log magnitude ratio, over three window lengths."
    yield Measure("codec.spectral_distance", distance, "", said, tolerances["spectral_distance"])
    yield _sample_difference("codec.sample_difference", sounds, config, "the reference", tolerances)
    yield from _onset_measures(shift, tolerances)


def _sample_difference(
    name: str, sounds: Sounds, config: ModelConfig, reference: str, tolerances: Mapping[str, Tolerance]
) -> Measure:
    difference = np.abs(sounds.got - sounds.expected)
    return Measure(
        name,
        float(difference.max()),
        "of full scale",
        f"The same codes decoded: the largest difference of a sample from {reference}.",
        tolerances["sample_difference"],
        f"frame {int(difference.argmax()) // config.frame_size}",
    )


def _onset_measures(shift: OnsetShift, tolerances: Mapping[str, Tolerance]) -> Iterator[Measure]:
    said = f"Delay of the rise of {shift.onsets} onsets (below 0: earlier); a softer rise counts as a delay: "
    worst = None if shift.worst_ms is None else abs(shift.worst_ms)
    tolerance = tolerances["onset_shift_ms"] if shift.onsets else None
    where = "" if shift.worst_s is None else f"{shift.worst_s:.2f} s"
    yield Measure("codec.onset_shift_ms", worst, "ms", f"{said}the largest, without its sign.", tolerance, where)
    yield Measure("codec.median_onset_shift_ms", shift.median_ms, "ms", f"{said}the median.")


def _lowest(agreement: Floats) -> str:
    return f"codebook {agreement.argmin()}: {agreement.min():.3f}" if agreement.min() < 1 else ""


# Tables and plots.


def _code_table(codes: ComparedCodes) -> Table:
    rows = tuple(
        (
            i,
            float(1 - codes.differs[:, i].mean()),
            int(codes.differs[:, i].sum()),
            int(codes.explained[:, i].sum()),
            int(codes.follows[:, i].sum()),
            int(codes.unexplained[:, i].sum()),
            float(codes.largest[i]),
        )
        for i in range(CODEBOOKS)
    )
    columns = ("codebook", "equal", "different", "near ties", "after another", "unexplained", "largest distance")
    return Table("Codes by codebook", columns, rows)


def _agreement_plot(codes: ComparedCodes) -> Plot:
    agreement = 1 - codes.differs.mean(axis=0)
    series = Series("agreement", tuple(map(float, range(CODEBOOKS))), tuple(map(float, agreement)))
    ticks = ("semantic", *(f"acoustic {i}" for i in range(1, CODEBOOKS)))
    return Plot("Codes equal to the reference's", "bar", "codebook", "share", (series,), ticks=ticks)


def _level_plot(sounds: Sounds, config: ModelConfig) -> Plot:
    got, expected = sounds.audible
    seconds = tuple(float(s) for s in np.arange(len(got) // config.frame_size) * config.frame_size / SAMPLE_RATE_HZ)
    series = tuple(
        Series(name, seconds, _levels_db(signal, config))
        for name, signal in (("sound", expected), ("difference", got - expected))
    )
    return Plot("The same codes decoded", "line", "s", "dB of full scale", series)


def _levels_db(signal: Floats, config: ModelConfig) -> tuple[float, ...]:
    """Per frame."""
    power = (signal.reshape(-1, config.frame_size).astype(np.float64) ** 2).mean(axis=1)
    return tuple(map(float, 10 * np.log10(np.maximum(power, 10 ** (QUIETEST_DB / 10)))))


def _onset_plots(shift: OnsetShift) -> tuple[Plot, ...]:
    series = Series("shift", shift.times_s, shift.shifts_ms)
    return (Plot("Delay of onsets", "line", "s", "ms", (series,)),) if shift.onsets else ()
