"""Counts the frames until two engines with the same seed give different tokens."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pplex.bench.frame import ENGINES
from pplex.export.checkpoint import open_checkpoint
from pplex.measure.machine import machine
from pplex.measure.report import BenchReport
from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.errors import ReportError
from pplex.runtime.session import Runtime
from pplex.validate.reference import as_float32, torch_backend
from pplex.validate.validation import runnable_here

BATCH = 4  # slots and batch size of every engine except the one of batch size 1
SEED = 1000  # the first seed


def bench_parting(
    folder: Path, others: Sequence[Path], checkpoint: Path | None, seeds: int, frames: int, threads: int | None = None
) -> BenchReport:
    """Count the frames until another engine gives other tokens than the bundle in `folder`, for `seeds` seeds.

    The other engines: the same bundle at batch size 1, torch if `checkpoint` is given, and the bundles `others`. All sample
    at the default settings and hear the same random codes. A conversation without a difference counts as `frames`.
    Raises ReportError if a bundle has another checkpoint.
    """
    bundle = open_bundle(folder)
    opened = [open_bundle(other) for other in others]
    weights = bundle.manifest["checkpoint"]["files"]
    if strange := [other.folder.name for other in opened if other.manifest["checkpoint"]["files"] != weights]:
        raise ReportError(
            f"{', '.join(strange)}: built from another checkpoint than {folder.name}. Build all from the same one."
        )
    codes = np.random.default_rng(0).integers(0, bundle.config.audio_card, (frames, 8))
    base = _tokens(Runtime(bundle, BATCH, threads, batches=[BATCH]), codes, seeds)
    found = {f"batches of 1 and {BATCH}": _tokens(Runtime(bundle, 1, threads, batches=[1]), codes, seeds)}
    if checkpoint is not None:
        backend = torch_backend(open_checkpoint(checkpoint), bundle.config)
        found["torch"] = _tokens(Runtime(as_float32(bundle), BATCH, device=backend), codes, seeds)
    for other in opened:
        with runnable_here(other, None) as runnable:
            found[_name(other)] = _tokens(Runtime(runnable, BATCH, threads, batches=[BATCH]), codes, seeds)
    figures: dict[str, Any] = {"seeds": seeds, "maximum frames": frames}
    for name, tokens in found.items():
        first = _first_difference(base, tokens)
        figures |= {f"{name}: median frames": float(np.median(first)), f"{name}: parted": int((first < frames).sum())}
    return BenchReport(
        f"frames until {folder.name} and others part", {}, figures, machine(threads, "numpy", "torch", *ENGINES)
    )


def _tokens(runtime: Runtime, codes: Tokens, seeds: int) -> Tokens:
    """Tokens [seeds, F, 17]: one session for each seed; all hear codes [F, 8]."""
    said = []
    for first in range(SEED, SEED + seeds, runtime.slots):
        with ExitStack() as stack:
            last = min(first + runtime.slots, SEED + seeds)
            sessions = [stack.enter_context(runtime.open(seed=seed)) for seed in range(first, last)]
            steps = [runtime.step_codes(dict.fromkeys(sessions, heard)) for heard in codes]
            said += [np.stack([step[session] for step in steps]) for session in sessions]
    return np.stack(said)


def _first_difference(one: Tokens, other: Tokens) -> Tokens:
    """The first frame with another token, for each seed [n]; the number of frames if all are equal."""
    differs = (one != other).any(axis=2)  # [n, F]
    return np.where(differs.any(axis=1), differs.argmax(axis=1), differs.shape[1])


def _name(bundle: Bundle) -> str:
    """The folder's name, and the precision of the language graphs."""
    return f"{bundle.folder.name} ({bundle.precision['temporal']})"
