"""The prompt of a session as steps with all tokens forced: voice, silence, persona, silence. Called by `runtime.priming`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Voice
from pplex.runtime.config import CODEBOOKS, SILENCE_CODES, SILENCE_FRAMES, SINE_CODES, ModelConfig
from pplex.runtime.errors import PromptError

NO_PROMPT = "This is a Moshi model: it has one voice, and takes neither a voice nor a persona. Leave both out."


@dataclass(frozen=True)
class Prompt:
    """The steps that prime a session.

    A recorded voice comes first: its embeddings [V, dim] replace the summed token embeddings. Then its token ring `cache`
    [17, 4] replaces the session's. `tokens` [n, 17] are the forced frames after that.
    """

    voice: Voice | None
    tokens: Tokens

    @property
    def voice_steps(self) -> int:
        return 0 if self.voice is None else len(self.voice.embeddings)

    @property
    def steps(self) -> int:
        """Steps of the temporal transformer; each takes one ring entry."""
        return self.voice_steps + len(self.tokens)


def make_prompt(config: ModelConfig, voice: Voice | Tokens | None, persona: Sequence[int]) -> Prompt:
    """The prompt for a voice (recorded, or the codes [F, 8] of its audio) and a persona's text tokens.

        text    padding   padding         persona     padding
        agent   voice     0.5 s silence   silence     0.5 s silence
        user    440 Hz tone in all steps

    A Moshi model has none: its conversation begins at once. Raises PromptError if the prompt does not fit into the ring, or
    the model does not have a token, or no prompt.
    """
    if not config.takes_prompt:
        return _no_prompt(voice, persona)
    wrong = [token for token in persona if not 0 <= token <= config.text_card]
    if wrong:
        raise PromptError(f"The persona holds token {wrong[0]}; this model's text tokens are 0 to {config.text_card}.")
    silence = [_frame(config.text_padding, SILENCE_CODES)] * SILENCE_FRAMES
    frames = [*silence, *(_frame(token, SILENCE_CODES) for token in persona), *silence]
    recorded = voice if isinstance(voice, Voice) else None
    if recorded is None:
        codes = [] if voice is None else [tuple(int(code) for code in frame) for frame in np.asarray(voice)]
        frames = [*(_frame(config.text_padding, frame) for frame in codes), *frames]
        del frames[0]  # the reference's first call only sets up, and drops its frame
    prompt = Prompt(recorded, np.array(frames, np.int64).reshape(-1, 1 + 2 * CODEBOOKS))
    _check_length(config, prompt.steps, len(persona))
    return prompt


def _no_prompt(voice: Voice | Tokens | None, persona: Sequence[int]) -> Prompt:
    if voice is not None or len(persona):
        raise PromptError(NO_PROMPT)
    return Prompt(None, np.zeros((0, 1 + 2 * CODEBOOKS), np.int64))


def _frame(text: int, agent: Sequence[int]) -> tuple[int, ...]:
    return (text, *agent, *SINE_CODES)


def _check_length(config: ModelConfig, steps: int, persona_tokens: int) -> None:
    """Raise PromptError if a prompt of `steps` steps, `persona_tokens` of them for the persona, does not fit into the ring.

    The window is capacity - 1 steps, including the first step of the conversation: see export/layers.py, readable.
    """
    room, others = config.temporal.capacity - 2, steps - persona_tokens
    if steps > room:
        shorter = f"Shorten the persona to {room - others} tokens, or choose" if others < room else "Choose"
        raise PromptError(
            f"The prompt takes {steps} steps (persona {persona_tokens}, voice and silences {others}), but the model "
            f"remembers {room}. {shorter} a shorter voice."
        )
