"""Check of our kernel for int4 on processors: compiled, loaded, its instructions. Called by `doctor.examination`."""

from collections.abc import Iterator

from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import Probe, first_line, probe

_INT4 = """
from pplex.runtime.int4_kernel import choice
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
SLOWER = "Bundles in int4 run on ONNX Runtime's own kernel, which is slower."


def ask_int4_kernel() -> Probe:
    """Which kernel multiplies int4 weights here."""
    return probe(_INT4)


def check_int4_kernel(question: Question, answer: Probe) -> Iterator[Finding]:
    """Check whether products with int4 weights use our kernel. Without it, everything works, but more slowly."""
    if answer.error:
        fact = f"Our kernel for int4 cannot be examined: {first_line(answer.error)}"
        yield Finding("int4 kernel", WARNING, fact)
        return
    found = answer.value
    if found["wrong"]:
        stops = tuple(aim for aim in ("run", "serve") if aim in question.aims)
        yield Finding("int4 kernel", PROBLEM, found["wrong"], "Unset PPLEX_INT4_KERNEL.", stops, found)
    elif found["level"]:
        fact = f"On processors, products with int4 weights use our kernel, with {found['level']} instructions."
        yield Finding("int4 kernel", OK, fact, details=found)
    elif not found["wanted"]:
        yield Finding("int4 kernel", OK, f"{found['reason']} {SLOWER}", details=found)
    else:
        fact, _, advice = found["reason"].partition(". ")
        yield Finding("int4 kernel", WARNING, f"Our kernel: {fact}. {SLOWER}", advice or None, details=found)
