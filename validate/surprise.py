"""How much the float32 reference is surprised by what an agent said, running freely: called by `validate.validation`.

Two free conversations differ after some draw, so tokens cannot be compared. But the reference can say how probable it finds
each of them: an agent that babbles says what the reference would hardly ever say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import conversation_history
from pplex.runtime.arrays import Floats
from pplex.runtime.bundle import Voice
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.validate.drift import log_likelihoods
from pplex.validate.recording import ScenarioRecording
from pplex.validate.report.schema import Measure


@dataclass(frozen=True)
class Surprise:
    """Mean negative log-likelihood under the reference, in nats: of a frame's text token, and of one of its 8 codes."""

    text: float
    audio: float


def surprise(
    checkpoint: Checkpoint,
    config: ModelConfig,
    voice: Voice | None,
    persona: Sequence[int],
    recordings: Sequence[ScenarioRecording],
) -> Surprise:
    """The reference's surprise at all frames of the recordings, whose prompt was `voice` and `persona`."""
    found = [_of_recording(checkpoint, config, voice, persona, recording) for recording in recordings]
    return Surprise(*(float(np.concatenate(parts).mean()) for parts in zip(*found, strict=True)))


def _of_recording(
    checkpoint: Checkpoint,
    config: ModelConfig,
    voice: Voice | None,
    persona: Sequence[int],
    recording: ScenarioRecording,
) -> tuple[Floats, Floats]:
    """Of each frame's text [F] and codes [F, 8]."""
    history = conversation_history(config, voice, persona, recording.tokens)
    text, audio = log_likelihoods(checkpoint, config, history.codes.numpy(), history.embedding)
    own = slice(len(text) - len(recording.tokens), None)  # the prompt was forced
    return -text[own], -audio[own, :CODEBOOKS]


def surprise_measures(ours: Surprise, theirs: Surprise) -> tuple[Measure, Measure]:
    """Measures of the engine's conversations, and of the reference's."""

    def measure(name: str, what: str, engine: float, reference: float) -> Measure:
        return Measure(
            f"conversation.{name}_surprise",
            engine - reference,
            "nats",
            f"How much more the reference is surprised by {what} of the engine's free conversations than by its own "
            f"(engine {engine:.3f}, reference {reference:.3f})",
        )

    return (
        measure("text", "the text tokens", ours.text, theirs.text),
        measure("audio", "the codes", ours.audio, theirs.audio),
    )
