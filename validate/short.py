"""The short validation at the end of a build: every layer, and the drift over a few seconds. Called by `cli.checkpoints`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pplex.export.checkpoint import Checkpoint
from pplex.runtime.bundle import Bundle
from pplex.runtime.errors import EngineError
from pplex.runtime.gpus import ONNXRUNTIME
from pplex.validate.memory import lacking_memory, short_validation_nbytes
from pplex.validate.report.schema import Report
from pplex.validate.validation import ValidateOptions, validate_unchecked

FRAMES = 128
OPTIONS = ValidateOptions(frames=FRAMES, sections=("graphs", "drift"))


def check_build(bundle: Bundle, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """A summary for the manifest. If the bundle cannot run here, the summary has the reason."""
    lacking = _lacking(bundle)
    if lacking:
        return not_checked(lacking)
    try:
        return summary(validate_unchecked(bundle, checkpoint, OPTIONS).report)
    except EngineError as error:
        return not_checked(f"it cannot run here: {error}")


def summary(report: Report) -> dict[str, Any]:
    """The summary of a report for the manifest."""
    kept = {m.name: {"value": m.value, "limit": m.tolerance.limit} for m in report.measures if m.tolerance is not None}
    failures = [
        f"{m.name}: {m.value:.3g} at {m.where}" if m.where else f"{m.name}: {m.value:.3g}" for m in report.failures
    ]
    frames = report.settings["frames"]
    graded = {"grade": {**asdict(report.grade), "reasons": [*report.grade.reasons]}} if report.grade else {}
    return {"checked": True, "passed": report.passed, "frames": frames, "failures": failures, "measures": kept} | graded


def not_checked(reason: str) -> dict[str, Any]:
    return {"checked": False, "reason": reason}


def _lacking(bundle: Bundle) -> str | None:
    """The reason if this machine cannot load the bundle's graphs; None if it can."""
    if any(entry["kind"] != ONNXRUNTIME for entry in bundle.manifest["engines"].values()):
        return None  # engines need GPU memory, which loading checks
    return lacking_memory(short_validation_nbytes(bundle.config, bundle.precision, bundle.forms))
