"""Measures of the streaming section: state in chunks or single steps, saved and restored, alone and with other slots.

Called by `validate.sections.graphs` and `validate.validation`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pplex.export.checkpoint import Checkpoint
from pplex.export.mimi import MimiEncoder
from pplex.export.weights import load
from pplex.runtime.arrays import Floats, Pcm, Tokens
from pplex.runtime.backend import Backend
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.session import Runtime, Session
from pplex.runtime.stages import Stages
from pplex.validate.boundaries import compare_codes
from pplex.validate.layers import relative_error
from pplex.validate.offline_codec import latents_at_once
from pplex.validate.report.schema import Measure, Tolerance

Where = str | Backend | None

CHUNK = 24  # steps a call
ROW_STEPS = 24  # with all slots at once
FRAMES = 8  # of conversations side by side


def state_measures(
    bundle: Bundle, checkpoint: Checkpoint, stages: Stages, codes: Tokens, pcm: Pcm
) -> Iterator[Measure]:
    """Measure chunks, saved and restored state, and all slots at once, for a token history [T, 17] and audio [F, 1920].

    `stages` must have logits.
    """
    stages.reset(0, len(codes))
    steps = min(len(codes), bundle.config.temporal.capacity, 4 * CHUNK) - 1
    rounding = bundle.specs["temporal"].tolerances["rounding"]
    one_by_one, chunked = (_hidden(stages, bundle.config, codes[: steps + 1], size) for size in (1, CHUNK))
    yield Measure(
        "streaming.chunked",
        _relative(chunked, one_by_one),
        "",
        f"Hidden state after {steps} steps: in chunks of {CHUNK}, as in priming, against one by one.",
        Tolerance(rounding, "the same sums in another order; a chunk with wrong steps has a much larger error"),
    )
    yield Measure(
        "streaming.restored",
        _relative(_restored(stages, bundle.config, codes[: steps + 1]), one_by_one),
        "",
        "Hidden state of a conversation that was saved half way and restored into the last slot, against one that was not.",
        Tolerance(0, "the restored state has the same bits, and a row is always computed in the same way"),
    )
    yield _rows_measure(bundle, checkpoint, stages, codes, pcm)


def _rows_measure(bundle: Bundle, checkpoint: Checkpoint, stages: Stages, codes: Tokens, pcm: Pcm) -> Measure:
    """Step all slots with equal inputs in one call. Each must equal the first slot alone; codes may differ by a near tie."""
    pcm = pcm[np.arange(ROW_STEPS) % len(pcm)]
    alone, together = (_rows(stages, bundle.config, codes, pcm, batch) for batch in (1, stages.slots))
    wrong = _CodesApart(checkpoint, bundle.specs["mimi_encode"].tolerances["boundary"], pcm)
    errors = {
        f"{name} of slot {row}": (wrong if name == "codes" else _relative)(together[name][:, row], alone[name][:, 0])
        for name in alone
        for row in range(stages.slots)
    }
    worst = max(errors, key=lambda name: errors[name])
    return Measure(
        "streaming.rows",
        errors[worst],
        "",
        f"{ROW_STEPS} steps of every graph in one call for all {stages.slots} slots, against the first slot alone.",
        Tolerance(bundle.specs["temporal"].tolerances["rounding"], "the same sums in another order"),
        worst if errors[worst] else "",
    )


class _CodesApart:
    """The share of codes [F, 8] of pcm [F, 1920] that differ from the expected codes and are not near ties."""

    def __init__(self, checkpoint: Checkpoint, boundary: float, pcm: Pcm):
        encoder = load("mimi_encode", checkpoint)
        assert isinstance(encoder, MimiEncoder)
        self._quantizer, self._boundary = encoder.quantizer, boundary
        self._latents = latents_at_once(encoder, checkpoint.config, pcm)

    def __call__(self, got: Floats, expected: Floats) -> float:
        ours, theirs = got.astype(np.int64), expected.astype(np.int64)
        return float(compare_codes(self._quantizer, self._latents, ours, theirs, self._boundary).unexplained.mean())


def _rows(stages: Stages, config: ModelConfig, codes: Tokens, pcm: Pcm, batch: int) -> dict[str, Floats]:
    """Outputs of each graph in ROW_STEPS steps, [T, S, ...] by name; every slot gets the same inputs."""
    for row in range(stages.slots):
        stages.reset(row, len(codes))
    stages.active[:], seen = True, dict[str, list[Floats]]()
    for step in range(ROW_STEPS):
        target = codes[step + 1].clip(min=0)
        stages.codes[:, 0], stages.position[:], stages.pcm_in[:, 0] = codes[step], step, pcm[step]
        stages.forced_text[:], stages.forced_audio[:] = target[0], target[1 : 1 + config.depth_steps]
        stages.agent_codes[:] = target[1 : 1 + CODEBOOKS].clip(
            max=config.audio_card - 1
        )  # the first tokens are not codes
        for graph, name in (
            ("mimi_encode", "codes"),
            ("temporal", "hidden"),
            ("depth", "audio_logits"),
            ("mimi_decode", "pcm"),
        ):
            stages.run(graph, batch)
            seen.setdefault(name, []).append(stages.tensors(graph)[name][:batch].astype(np.float64))
    for row in range(stages.slots):
        stages.reset(row, len(codes))
    return {name: np.stack(found) for name, found in seen.items()}


def _hidden(stages: Stages, config: ModelConfig, codes: Tokens, size: int, row: int = 0, start: int = 0) -> Floats:
    """The hidden state [dim] after codes [T + 1, 17]: the last step in its own call, earlier ones in calls of `size`."""
    embedding = np.zeros((size, config.temporal.dim), np.float32)
    last = len(codes) - 2
    for step in range(start, last, size):
        chunk = codes[step : min(step + size, last)]
        stages.run_forced(row, step, chunk, embedding[: len(chunk)])
    stages.codes[row, 0], stages.position[row], stages.forced_text[row] = codes[last], last, 0
    stages.run("temporal", 1, row)
    return stages.hidden[row].copy()


def _restored(stages: Stages, config: ModelConfig, codes: Tokens) -> Floats:
    half, last = len(codes) // 2, stages.slots - 1
    stages.reset(0, len(codes))
    _hidden(stages, config, codes[: half + 2], 1)
    saved = stages.save(0, half)
    stages.reset(0, len(codes))
    stages.restore(last, saved)
    return _hidden(stages, config, codes, 1, row=last, start=half)


def batch_measures(runtime: Runtime, pcm: Pcm) -> Iterator[Measure]:
    """Compare a conversation alone with the same one in the last slot beside others, for pcm [F, 1920].

    `runtime` must have only one batch size.
    """
    assert len(runtime.batches) == 1, runtime.batches
    slots = runtime.slots
    expected = _talk(runtime, [runtime.open(seed=7)], pcm)
    got = _talk(runtime, [runtime.open(seed=seed) for seed in [*range(slots - 1), 7]], pcm)
    yield Measure(
        "streaming.batch_tokens",
        float((got[0] == expected[0]).mean()),
        "",
        f"Share of a conversation's tokens ({FRAMES} frames) that are the same alone and in slot {slots - 1} beside others.",
        Tolerance(1, "at one batch size a slot's result does not depend on the others, to the bit", least=True),
    )
    yield Measure(
        "streaming.batch_audio",
        _relative(got[1], expected[1]),
        "",
        "Audio of that conversation, alone and beside others.",
        Tolerance(0, "at one batch size a slot's result does not depend on the others, to the bit"),
    )


def _talk(runtime: Runtime, sessions: Sequence[Session], pcm: Pcm) -> tuple[Tokens, Floats]:
    """Tokens [F, 17] and samples [F, 1920] of the last session; the others hear other frames. Closes all sessions."""
    replies = []
    for i in range(FRAMES):
        heard = {session: pcm[(i + 7 * j) % len(pcm)] for j, session in enumerate(sessions[:-1])}
        replies.append(runtime.step({**heard, sessions[-1]: pcm[i % len(pcm)]})[sessions[-1]])
    for session in sessions:
        session.close()
    return np.stack([reply.tokens for reply in replies]), np.stack([reply.pcm for reply in replies])


def _relative(got: Any, expected: Any) -> float:
    return relative_error(torch.from_numpy(got), torch.from_numpy(expected))
