"""Compares a bundle with the original code while it is steered: forced text and audio, and a memory that is rebuilt.

`python -m pplex.validate.steered BUNDLE FOLDER` prints every check and exits with 1 if one fails.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pplex.runtime.arrays import Array, Tokens
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.errors import PplexError
from pplex.runtime.noise import FrameNoise
from pplex.runtime.session import Runtime, Session
from pplex.validate.golden import Check, Where, equal_tokens, print_checks, recorded_noise, sampling_of
from pplex.validate.parting import TokenTrace
from pplex.validate.standings import Standings, standings

VOICES = {"say_hold": "NATM1", "rebuild": "NATF0"}  # of each recording
BEFORE, AFTER = "say_hold", "rebuild"  # the second one begins with the frames of the first one, behind another prompt


@dataclass(frozen=True)
class Recording:
    """One steered conversation: the user's codes, what was forced in each frame, and what the original code answered."""

    name: str
    persona: list[int]
    user: Tokens  # [F, 8]
    forced: Tokens  # [F, 9] text and agent; -1: free
    tokens: Tokens  # [F, 17] of each call: the frame before
    noise: list[FrameNoise | None]

    @classmethod
    def read(cls, folder: Path, name: str) -> "Recording":
        found: Mapping[str, Array] = load_file(folder / f"{name}.safetensors")
        forced = np.concatenate([found["forced_text"][:, None], found["forced_audio"]], axis=1).astype(np.int64)
        persona, user = found["prompt_text_tokens"].tolist(), found["user_codes"].T.astype(np.int64)
        return cls(name, persona, user, forced, found["tokens"].astype(np.int64), recorded_noise(dict(found)))

    @property
    def free_from(self) -> int:
        """The first frame after the last forced one."""
        return int(np.flatnonzero((self.forced >= 0).any(axis=1)).max()) + 1


def check_steered(bundle: Bundle, folder: Path, device: Where = None) -> Iterator[Check]:
    """All checks of a folder; `bundle` must be built from the checkpoint that it names. `device` as in `Runtime`."""
    checkpoint = folder / (folder / "checkpoint.txt").read_text().strip() / "checkpoint"
    runtime = Runtime(bundle, slots=2, batches=[2], device=device, logits=True)
    for name in VOICES:
        recording = Recording.read(folder, name)
        with _open(runtime, recording, name) as session:
            trace = _follow(runtime, session, recording, name)
        yield equal_tokens(bundle, checkpoint, recording.tokens[1:], trace)
    recording = Recording.read(folder, AFTER)
    with _open(runtime, recording, BEFORE, Recording.read(folder, BEFORE).persona) as session:
        trace = _follow(runtime, session, recording, f"{AFTER} during the call", rebuild=True)
    yield equal_tokens(bundle, checkpoint, recording.tokens[1:], trace)


def _open(runtime: Runtime, recording: Recording, voice: str, persona: list[int] | None = None) -> Session:
    """A session that begins like the recording, with another prompt if `persona` is given."""
    sampling, noise = sampling_of(recording.noise[0]), recording.noise[0]
    opening = runtime.begin(VOICES[voice], persona or recording.persona, 0, sampling, noise, forced=recording.forced[0])
    try:
        while True:
            next(opening)
    except StopIteration as end:
        session: Session = end.value
        return session


def _follow(runtime: Runtime, session: Session, recording: Recording, name: str, rebuild: bool = False) -> TokenTrace:
    """Play a recording to a session. rebuild: give it the recording's prompt in the last moment before it is free."""
    tokens, drawn = list[Tokens](), [standings(session, recording.noise[0])]
    for frame in range(len(recording.user) - 1):
        if rebuild and frame == recording.free_from - 1:
            runtime.memory.limit = session.frame + recording.tokens.size  # the recording outlasts the model's window
            session.rebuild(recording.persona, voice=VOICES[recording.name], keep_seconds=session.frame)
        forced, noise = {session: recording.forced[frame + 1]}, recording.noise[frame + 1]
        recorded = {} if noise is None else {session: noise}
        tokens.append(runtime.step_codes({session: recording.user[frame]}, recorded, forced)[session])
        drawn.append(standings(session, noise))
    return TokenTrace(name, np.stack(tokens), Standings.stack(drawn))


if __name__ == "__main__":
    try:
        bundle, folder = sys.argv[1:]
        sys.exit(print_checks(check_steered(open_bundle(Path(bundle)), Path(folder))))
    except PplexError as error:
        sys.exit(f"Error: {error}")
