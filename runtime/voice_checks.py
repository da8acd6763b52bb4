"""Does a recording fit as a voice? Measures what makes a voice prompt bad, and says what to do. Called by `cli.voices`.

The released voices are about 4 s of one person's clean, wide-band speech. The limits below are our judgement: they are far
from such speech, and near the faults that they name.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import VOICE_LUFS, frames, normalize_loudness
from pplex.runtime.config import CODEBOOKS, SAMPLE_RATE_HZ, ModelConfig
from pplex.runtime.errors import AudioError, PromptError
from pplex.runtime.prompt import make_prompt

ADVISED_S = (3, 15)
MIN_SPEECH_S = 1.5
QUIET_LUFS = -45.0  # below it, priming raises the recording's noise by more than 21 dB
MIN_RANGE_DB = 15.0  # between the speech and the quietest parts; clean speech has 30 to 60
CLIPPED = 2.0  # times as many samples at one level as just below it; speech has fewer
CLIPPED_SHARE = 1e-3  # of all samples are at that level
NARROW_HZ = 5000  # a telephone call ends at 3400 or 4000 Hz
HEARD_DB = -60.0  # relative to the loudest frequency; clean speech has more up to 8000 Hz
_BLOCK = SAMPLE_RATE_HZ // 50  # 20 ms
_SPEECH_DB = -30.0  # relative to the loud blocks

Levels = npt.NDArray[np.float64]


CONSENT = (
    "Use a real person's voice only with that person's consent, and only as the weights' licence and your law allow. "
    "Tell listeners that the voice is synthetic."
)
OWN_VOICE = "holds a Moshi model, which has its own voice only. Voices need a PersonaPlex model."


def check_takes_voices(folder: Path, config: ModelConfig) -> None:
    """Raise PromptError if the model of the bundle `folder` has no voices to choose."""
    if not config.takes_prompt:
        raise PromptError(f"{folder} {OWN_VOICE}")


def prepared(pcm: Pcm, config: ModelConfig, name: str) -> Pcm:
    """The frames [F, 1920] of a recording [samples] at 24 kHz, with the loudness of a voice: the same as at run time.

    Raises AudioError that names the recording if it is too short, too long or silent.
    """
    try:
        spoken = frames(normalize_loudness(pcm), config.frame_size)
    except AudioError as error:
        raise AudioError(f"{name} cannot be a voice. {error}") from error
    longest = config.temporal.capacity - 2 - make_prompt(config, np.zeros((0, CODEBOOKS), np.int64), ()).steps
    if len(spoken) > longest:
        longest_s = longest * config.frame_ms / 1000
        raise AudioError(
            f"{name} lasts {len(pcm) / SAMPLE_RATE_HZ:.2f} s, but the model has room for {longest_s:.2f} s at most.\n"
            f"Cut it to {ADVISED_S[0]} to {ADVISED_S[1]} s: the persona and the conversation need room, too."
        )
    return spoken


def faults(pcm: Pcm) -> Iterator[str]:
    """What is doubtful about a voice recording [samples] at 24 kHz, which must not be silent: sentences for each fault."""
    seconds = len(pcm) / SAMPLE_RATE_HZ
    levels_db = _levels_db(pcm)
    loud_db, quiet_db = np.percentile(levels_db, 95), np.percentile(levels_db, 10)
    speech_s = float((levels_db > loud_db + _SPEECH_DB).mean()) * seconds
    if not ADVISED_S[0] <= seconds <= ADVISED_S[1]:
        yield f"it lasts {seconds:.1f} s. {ADVISED_S[0]} to {ADVISED_S[1]} s are advised."
    elif speech_s < MIN_SPEECH_S:
        yield f"only {speech_s:.1f} s of its {seconds:.1f} s are sound. Cut the pauses, or speak more."
    lufs = VOICE_LUFS - 20 * np.log10(np.abs(normalize_loudness(pcm)).max() / np.abs(pcm).max())
    if lufs < QUIET_LUFS:
        yield f"it is very quiet ({lufs:.0f} LUFS), and its noise is raised with it. Record nearer to the microphone."
    if _is_clipped(pcm):
        yield "it is clipped: its loudest parts are cut off. Record it with less gain."
    if loud_db - quiet_db < MIN_RANGE_DB:
        yield (
            f"its quietest parts are only {loud_db - quiet_db:.0f} dB below the speech: noise, music or an echo. "
            "Record one person in a quiet room."
        )
    highest_hz = _highest_hz(pcm)
    if highest_hz < NARROW_HZ:
        yield (
            f"it holds nothing above {highest_hz / 1000:.1f} kHz, like a telephone call, and so will the voice. "
            "Record at 24 kHz or more."
        )


def _levels_db(pcm: Pcm) -> Levels:
    """The power of each block of 20 ms, in dB."""
    blocks = pcm[: len(pcm) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).astype(np.float64)
    return 10 * np.log10(blocks.var(axis=1) + 1e-12)


def _is_clipped(pcm: Pcm) -> bool:
    """Whether many samples have one high level, also if the recording was resampled or made quieter since.

    Resampling moves the peak above the level at which a recording was clipped. So all levels above 40 % are searched.
    """
    size = np.abs(pcm)
    counts, _ = np.histogram(size / size.max(), np.linspace(0.4, 1, 31))
    share = counts / len(size)
    below = np.array([share[i - 3 : i].mean() for i in range(3, len(share))])
    return bool((share[3:] > np.maximum(CLIPPED_SHARE, CLIPPED * below)).any())


def _highest_hz(pcm: Pcm) -> float:
    """The highest frequency whose mean power is above `HEARD_DB`."""
    size = 1024
    blocks = pcm[: len(pcm) // size * size].reshape(-1, size) * np.hanning(size)
    power = (np.abs(np.fft.rfft(blocks)) ** 2).mean(axis=0)
    heard = np.flatnonzero(power > power.max() * 10 ** (HEARD_DB / 10))
    return float(heard[-1] * SAMPLE_RATE_HZ / size)
