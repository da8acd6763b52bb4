"""Check of our kernels for processors: compiled, loaded, its instructions. Called by `doctor.examination`."""

from collections.abc import Iterator

from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import Probe, first_line, probe

_INT4 = """
from pplex.runtime.kernel_choice import choice
from pplex.runtime.errors import EngineError
found = {"level": None, "levels": [], "reason": None, "wanted": True, "wrong": None}
try:
    chosen = choice()
    found.update(reason=chosen.reason, wanted=chosen.wanted)
    if chosen.kernel:
        found.update(level=chosen.kernel.level, levels=chosen.kernel.levels)
except EngineError as error:
    found["wrong"] = str(error)
"""
SLOWER = "Bundles in int8 and int4 run on ONNX Runtime's own kernels, which are slower."


def ask_kernels() -> Probe:
    """Which kernels this processor uses."""
    return probe(_INT4)


def check_kernels(question: Question, answer: Probe) -> Iterator[Finding]:
    """Check whether bundles in int8 and int4 use our kernels. Without it, everything works, but more slowly."""
    if answer.error:
        fact = f"Our kernels cannot be examined: {first_line(answer.error)}"
        yield Finding("kernels", WARNING, fact)
        return
    found = answer.value
    if found["wrong"]:
        stops = tuple(aim for aim in ("run", "serve") if aim in question.aims)
        yield Finding("kernels", PROBLEM, found["wrong"], "Unset PPLEX_KERNELS.", stops, found)
    elif found["level"]:
        fact = f"On processors, bundles in int8 and int4 use our kernels, with {found['level']} instructions."
        yield Finding("kernels", OK, fact, details=found)
    elif not found["wanted"]:
        yield Finding("kernels", OK, f"{found['reason']} {SLOWER}", details=found)
    else:
        fact, _, advice = found["reason"].partition(". ")
        yield Finding("kernels", WARNING, f"Our kernels: {fact}. {SLOWER}", advice or None, details=found)
