"""Compares a bundle with recorded outputs of the original code: of codec, teacher-forced steps and whole conversations.

`python -m pplex.validate.golden BUNDLE GOLDEN` prints every check and exits with 1 if one fails.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.errors import PplexError
from pplex.runtime.noise import FrameNoise
from pplex.runtime.sampling import GREEDY, Sampling
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.validate.parting import Judge, TokenTrace
from pplex.validate.standings import Standings, standings

Where = str | Backend | None

PCM_TOLERANCE = 1e-4  # absolute. 70 dB below full scale is inaudible; float32 sums in another order reach 1e-6
LOGITS_TOLERANCE = 1e-3  # of the expected values' range: float32 sums in another order reach 1e-5
TIE_TOLERANCE = 1e-5  # of the squared distance: rounding decides between entries this close

VOICES = {"greedy": "NATF0", "sampled": "NATM1", "wav_voice": "synthetic.wav"}  # of each conversation of PersonaPlex


@dataclass(frozen=True)
class Check:
    """One comparison: `worst` is the largest difference, in the unit of `tolerance`."""

    name: str
    worst: float
    tolerance: float
    compared: int

    @property
    def passed(self) -> bool:
        return self.compared > 0 and self.worst <= self.tolerance


def check_golden(bundle: Bundle, golden: Path, device: Where = None) -> Iterator[Check]:
    """All checks of the golden folder with the bundle's engines; `bundle` must be built from its checkpoint.

    `device` as in `Runtime`.
    """
    checkpoint = open_checkpoint(golden / "checkpoint")
    yield from check_codec(bundle, checkpoint, golden, device)
    yield from check_teacher_forced(bundle, golden, device)
    for name in conversations(golden):
        yield from check_conversation(bundle, golden, name, device)


def conversations(golden: Path) -> list[str]:
    """The names of the recorded conversations in a golden folder."""
    return [name for name in VOICES if (golden / "expected" / f"conversation_{name}.safetensors").is_file()]


def check_codec(bundle: Bundle, checkpoint: Checkpoint, golden: Path, device: Where = None) -> Iterator[Check]:
    """Codes of the recorded PCM, and PCM of the recorded codes, frame by frame."""
    expected = load_file(golden / "expected" / "mimi_stream.safetensors")
    stages = Stages(bundle, slots=1, device=device)
    codes = encode(stages, expected["pcm_in"].reshape(-1, bundle.config.frame_size))
    wrong = sum(_wrong_codes(checkpoint, codes, expected["codes"].T.astype(np.int64), expected["latent"].T))
    yield Check("mimi codes, except for ties", wrong, 0, codes.size)
    pcm = decode(stages, expected["codes"].T)
    yield _close("mimi pcm", pcm, expected["pcm_out"], PCM_TOLERANCE, scale=1.0)


def check_teacher_forced(bundle: Bundle, golden: Path, device: Where = None) -> Iterator[Check]:
    """Hidden state and logits of a fixed code sequence, past the end of the ring."""
    expected = load_file(golden / "expected" / "lm_teacher_forced.safetensors")
    kept = {int(step): i for i, step in enumerate(expected["steps"])}
    stages = Stages(bundle, slots=1, device=device, logits=True)
    hidden, text, audio = teacher_forced(stages, expected["codes"].T.astype(np.int64), kept)
    yield _close("hidden", hidden, expected["hidden"], LOGITS_TOLERANCE)
    yield _close("text logits", text, expected["text_logits"], LOGITS_TOLERANCE)
    yield _close("audio logits", audio, expected["audio_logits"][:, : audio.shape[1]], LOGITS_TOLERANCE)


def check_conversation(bundle: Bundle, golden: Path, name: str, device: Where = None) -> Iterator[Check]:
    """Step a primed session with the recorded user codes, and with the recorded noise if tokens were sampled.

    The original code returns a frame in the call after ours, so its first frame is the end of the prompt. All others must
    be equal until a near tie, because the conversations differ after a near tie. In a recording of a Moshi model, the first
    frame has the initial tokens.
    """
    expected = load_file(golden / "expected" / f"conversation_{name}.safetensors")
    voice = VOICES[name] if bundle.config.takes_prompt else None
    if voice and "." in voice:
        voice = str(golden / "checkpoint" / "voices" / voice)
    runtime = Runtime(bundle, slots=1, device=device, logits=True)
    persona, noise = expected["prompt_text_tokens"].tolist(), recorded_noise(expected)
    session = runtime.open(voice, persona, seed=0, sampling=sampling_of(noise[0]), recorded=noise[0])
    steps = int(runtime.ring.step[session.row]) - 1  # the last one draws the first tokens
    yield Check(f"{name}: prompt steps", abs(steps - int(expected["prompt_steps"][0])), 0, 1)
    assert session.prompt_end is not None
    yield Check(f"{name}: end of the prompt", int((session.prompt_end != expected["tokens"][0]).sum()), 0, 17)
    tokens, drawn = list[Tokens](), [standings(session, noise[0])]
    for codes, draws in zip(expected["user_codes"].T[:-1], noise[1:], strict=True):
        tokens.append(session.step_codes(codes.astype(np.int64), draws))
        drawn.append(standings(session, draws))
    got = TokenTrace(name, np.stack(tokens), Standings.stack(drawn))
    yield equal_tokens(bundle, golden / "checkpoint", expected["tokens"][1:], got)
    said = expected["tokens"] if bundle.config.takes_prompt else expected["tokens"][1:]  # initial tokens have no sound
    pcm = decode(Stages(bundle, slots=1, device=device), said[:, 1 : 1 + CODEBOOKS])
    yield _close(f"{name}: pcm", pcm, expected["pcm_out"], PCM_TOLERANCE, scale=1.0)


def equal_tokens(bundle: Bundle, checkpoint: Path, expected: Tokens, got: TokenTrace) -> Check:
    """Compare all tokens [F, 17] of a conversation, until a near tie that rounding explains."""
    judge = Judge(open_checkpoint(checkpoint), bundle.config, bundle.specs)
    parting = judge.parting(TokenTrace(got.name, expected.astype(np.int64)), got)
    frames = parting.equal_frames if parting and parting.explained else len(expected)
    wrong = int((got.tokens != expected)[:frames].sum())
    tied = f", until a tie in frame {frames}" if frames < len(expected) else ""
    return Check(f"{got.name}: tokens{tied}", wrong, 0, got.tokens[:frames].size)


def encode(stages: Stages, pcm: Floats) -> Tokens:
    """Encode pcm [F, 1920] in slot 0: codes [F, 8]."""
    codes = []
    stages.active[0] = True
    for frame in pcm:
        stages.pcm_in[0, 0] = frame
        stages.run("mimi_encode", 1)
        codes.append(stages.user_codes[0].copy())
    return np.stack(codes)


def decode(stages: Stages, codes: Tokens) -> Floats:
    """Decode codes [F, 8] in slot 0: PCM [F * 1920]."""
    pcm = []
    stages.active[0] = True
    for frame in codes:
        stages.agent_codes[0] = frame
        stages.run("mimi_decode", 1)
        pcm.append(stages.pcm_out[0, 0].copy())
    return np.concatenate(pcm)


def teacher_forced(stages: Stages, codes: Tokens, kept: dict[int, int]) -> tuple[Floats, Floats, Floats]:
    """Step through codes [T, 17]; returns hidden [S, dim], text [S, card] and audio [S, K, card] logits of the kept steps.

    `stages` must have logits. `kept` maps a step to its place in the result. In step t the depth transformer gets the tokens
    of column t + 1, with 0 for -1.
    """
    hidden, text, audio = [], [], []
    text_logits, audio_logits = stages.tensors("temporal")["text_logits"], stages.tensors("depth")["audio_logits"]
    for step in range(max(kept) + 1):
        force_step(stages, codes, step)
        stages.run("temporal", 1)
        if step in kept:
            stages.run("depth", 1)
            hidden.append(stages.hidden[0].copy())
            text.append(text_logits[0].copy())
            audio.append(audio_logits[0].copy())
    order = [kept[step] for step in sorted(kept)]
    return tuple(np.stack(rows)[np.argsort(order)] for rows in (hidden, text, audio))  # type: ignore[return-value]


def force_step(stages: Stages, codes: Tokens, step: int) -> None:
    """Set slot 0's inputs for a step of codes [T, 17]: column `step`, with the next column as forced tokens."""
    target = codes[step + 1].clip(min=0)
    stages.codes[0, 0], stages.position[0] = codes[step], step
    stages.forced_text[0], stages.forced_audio[0] = target[0], target[1 : 1 + stages.forced_audio.shape[1]]


def recorded_noise(expected: dict[str, Any]) -> list[FrameNoise | None]:
    """The noise of every frame; None if the tokens were not sampled."""
    if "text_noise" not in expected:
        return [None] * len(expected["tokens"])
    names = "text_noise", "audio_noise", "text_ids", "audio_ids"
    return [FrameNoise(*frame) for frame in zip(*(expected[name] for name in names), strict=True)]


def sampling_of(noise: FrameNoise | None) -> Sampling:
    """The sampling of a recording: as many candidates as have noise."""
    return GREEDY if noise is None else Sampling(text_top_k=len(noise.text), audio_top_k=noise.audio.shape[1])


def _close(name: str, got: Floats, expected: Floats, tolerance: float, scale: float | None = None) -> Check:
    """The largest difference relative to the expected values' range, or to `scale`."""
    scale = float(np.ptp(expected)) if scale is None else scale
    same_shape = got.shape == expected.shape
    worst = float(np.abs(got - expected).max()) / scale if same_shape else np.inf
    return Check(name, worst, tolerance, got.size)


def _wrong_codes(checkpoint: Checkpoint, got: Tokens, expected: Tokens, latent: Floats) -> Iterator[int]:
    """The number of different codes that are not ties, for each frame. Acoustic codes after a tie may differ."""
    table = weights.sources("mimi_encode", checkpoint.config, checkpoint)
    read = {
        name: table[f"quantizer.{name}"].read(checkpoint).numpy() for name in ("semantic.weight", "acoustic.weight")
    }
    books = [table[f"quantizer.codebooks.{i}"].read(checkpoint).numpy() for i in range(CODEBOOKS)]
    for frame in np.flatnonzero((got != expected).any(axis=1)):
        wrong = 0
        if got[frame, 0] != expected[frame, 0]:
            wrong += not _tied(latent[frame] @ read["semantic.weight"], books[0], got[frame, 0], expected[frame, 0])
        residual = latent[frame] @ read["acoustic.weight"]
        for i in range(1, CODEBOOKS):
            if got[frame, i] != expected[frame, i]:
                wrong += not _tied(residual, books[i], got[frame, i], expected[frame, i])
                break
            residual = residual - books[i][expected[frame, i]]
        yield wrong


def _tied(x: Floats, book: Floats, first: int, second: int) -> bool:
    near, far = (float(((x - book[entry]) ** 2).sum()) for entry in (first, second))
    return abs(near - far) <= TIE_TOLERANCE * max(near, far, 1e-12)


def print_checks(checks: Iterable[Check]) -> int:
    """Print a table of all checks; returns 0 if all pass, else 1."""
    failed = 0
    print(f"{'':<6} {'worst':>9} {'tolerance':>9} {'compared':>9}")
    for check in checks:
        failed += not check.passed
        verdict = "ok" if check.passed else "FAILED"
        print(f"{verdict:<6} {check.worst:>9.1e} {check.tolerance:>9.0e} {check.compared:>9}  {check.name}")
    return min(failed, 1)


def main(bundle: str, golden: str) -> int:
    """Print all checks; returns 0 if all pass, else 1."""
    return print_checks(check_golden(open_bundle(Path(bundle)), Path(golden)))


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except PplexError as error:
        sys.exit(f"Error: {error}")
