"""Checks of a bundle: is it readable and complete, and do its engines run here?"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pplex.doctor.driver import Driver
from pplex.doctor.engines import CUDA
from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import Probe, probe

RUNNING = ("run", "serve")
_STATE = "from pplex.doctor.sizes import bundle_state; found = bundle_state(arguments[0])"
_TROUBLE = """
import json
from pplex.doctor.sizes import engine_trouble
found = engine_trouble(**json.loads(arguments[0]))
"""


def ask_bundle(question: Question) -> Probe | None:
    """The contents of the bundle; None if no bundle was named."""
    return None if question.bundle is None else probe(_STATE, str(question.bundle))


def check_bundle(question: Question, answer: Probe | None) -> Iterator[Finding]:
    """Check the bundle's manifest and files. Contents are not hashed: loading does that."""
    stops = tuple(aim for aim in RUNNING if aim in question.aims)
    if answer is None:
        return
    folder = question.bundle
    if answer.error and answer.error.startswith(("BundleError: ", "AccessError: ")):
        fact, advice = _cut(answer.error.partition(": ")[2])
        yield Finding("bundle", PROBLEM, fact, advice, stops)
    elif answer.missing or (answer.error and "ImportError" in answer.error):
        advice = "Repair the packages first."
        yield Finding("bundle", WARNING, f"{folder} cannot be checked yet: {answer.error}", advice)
    elif answer.error:
        advice = "Give this user permission to read it, copy it again, or rebuild it: pplex-export build"
        yield Finding("bundle", PROBLEM, f"{folder} cannot be read: {answer.error}", advice, stops)
    else:
        yield from _sound(question, answer.value)


def check_engines_run(
    question: Question, state: Mapping[str, Any], driver: Driver, ort: Probe, looked: Mapping[str, Probe]
) -> Iterator[Finding]:
    """Check what the bundle's graphs need here: a precision the processor supports, or the engines' GPU and library."""
    stops = tuple(aim for aim in RUNNING if aim in question.aims)
    compiled = {name: engine for name, engine in state["engines"].items() if name not in state["on_onnxruntime"]}
    on_gpu = bool(driver.gpus) and question.device != "cpu" and not ort.error and CUDA in ort.value["providers"]
    if state["in_bfloat16"] and not compiled and not on_gpu and not ort.error:
        fact = f"{', '.join(state['in_bfloat16'])}: in bf16, which ONNX Runtime cannot compute on the processor."
        advice = "Run it on a GPU, or rebuild it: pplex-export build CHECKPOINT --out BUNDLE"
        yield Finding("bundle", PROBLEM, fact, advice, stops)
    if not compiled:
        return
    kinds = sorted({engine["kind"] for engine in compiled.values()})
    missing = [kind for kind in kinds if kind not in looked or looked[kind].error]
    if question.device == "cpu" or not driver.gpus:
        fact = f"{', '.join(compiled)}: compiled for {_gpus(compiled)}, but this machine has no such GPU."
        advice = "Run it on that GPU, or build without --gpu: pplex-export build CHECKPOINT --out BUNDLE"
        yield Finding("engines", PROBLEM, fact, advice, stops)
    elif missing:
        fact = f"{', '.join(compiled)}: compiled with {', '.join(missing)}, which cannot be imported."
        yield Finding("engines", PROBLEM, fact, "Install it: pip install 'pplex-export[rtx]' or [tensorrt]", stops)
    else:
        yield _engines(question, state["engines"], driver, {kind: str(looked[kind].value) for kind in kinds}, stops)


def _engines(
    question: Question, engines: Mapping[str, Any], driver: Driver, versions: Mapping[str, str], stops: tuple[str, ...]
) -> Finding:
    slots = question.slots if question.aim == "serve" else 1
    gpu = driver.gpus[0]
    asked = {"engines": engines, "gpu": asdict(gpu), "versions": versions, "slots": slots}
    trouble = probe(_TROUBLE, json.dumps(asked))
    if trouble.error or trouble.value:
        fact, advice = _cut(trouble.error or trouble.value)
        return Finding("engines", PROBLEM, fact, advice, stops)
    return Finding("engines", OK, f"The bundle's engines are for this GPU: {gpu.name}.")


def _sound(question: Question, state: Mapping[str, Any]) -> Iterator[Finding]:
    kinds = {engine["kind"] for engine in state["engines"].values()}
    precision = ", ".join(f"{graph} {name}" for graph, name in state["precision"].items())
    fact = f"{question.bundle} is complete: {precision}; for {' and '.join(sorted(kinds))}."
    parity = state["parity"]
    details = {name: state[name] for name in ("precision", "weights", "session", "engines")}
    yield Finding("bundle", OK, fact, details=details)
    if parity and parity.get("checked") and not parity["passed"]:
        fact = "The validation at the end of its build failed: it exceeds the tolerances of its precision."
        yield Finding("bundle", WARNING, fact, f"To see what failed: pplex-export inspect {question.bundle}")


def _gpus(compiled: Mapping[str, Any]) -> str:
    return ", ".join(sorted({f"sm_{engine['sm']} ({engine['gpu']})" for engine in compiled.values()}))


def _cut(text: str) -> tuple[str, str]:
    """Split a message of ours into fact and advice. Advice is the last line, or else the last sentence."""
    fact, _, advice = text.strip().rpartition("\n")
    if not fact:
        fact, _, advice = text.strip().rpartition(". ")
        fact = f"{fact}." if fact else ""
    return (fact, advice) if fact else (advice, "Build it again: pplex-export build")
