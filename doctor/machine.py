"""Checks of processors, memory and disk: what is available, and what a build and a conversation need."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pplex.doctor.findings import OK, PROBLEM, WARNING, Finding, Question, gigabytes
from pplex.runtime import cgroup

RUNNING = ("run", "serve")
# A build takes this share of the model's bytes in 16 bits: 3.7 of 15.7 GB without engines, all 15.7 GB with them.
BUILT, COMPILED = 0.25, 1.0
BESIDE_NBYTES = 5 * 10**8  # Python, torch and one matrix, beside that
CHECKPOINT_NBYTES = 17_134_000_000  # the files of nvidia/personaplex-7b-v1 that a build fetches
RELEASED = "nvidia/personaplex-7b-v1"


def check_processors(question: Question) -> Iterator[Finding]:
    """Report the threads of a step, and their limit."""
    affinity, quota, threads = cgroup.affinity_processors(), cgroup.quota_processors(), cgroup.available_processors()
    details = {"processors": os.cpu_count(), "affinity": affinity, "quota": quota, "threads": threads}
    if quota is not None and quota < affinity:
        fact = (
            f"The control group (cgroup) allows {quota:g} of {affinity} processors: {_count(threads, 'thread')} a step."
        )
        advice = "For more threads, raise the CPU limit of the container or service."
        yield Finding("processors", WARNING if quota < 2 else OK, fact, advice, details=details)
        return
    limited = (
        f" (of {os.cpu_count()}; affinity or a cpuset excludes the others)" if affinity < (os.cpu_count() or 1) else ""
    )
    yield Finding("processors", OK, f"{_count(threads, 'thread')} a step{limited}.", details=details)


def check_memory(
    question: Question, sizes: Mapping[str, Mapping[str, int]], bundle: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """Compare free memory and the control group's limit with what a bundle on the processor and a build need."""
    free, limit = cgroup.available_memory(), cgroup.memory_limit_nbytes()
    if free is None:
        yield Finding(
            "memory", WARNING, "The system does not report free memory.", "Check it with the system's own tools."
        )
        return
    within = "" if limit is None else f", within the control group's limit of {gigabytes(limit)}"
    yield Finding(
        "memory", OK, f"{gigabytes(free)} free{within}.", details={"free_nbytes": free, "limit_nbytes": limit}
    )
    if any(aim in question.aims for aim in RUNNING):
        yield from _memory_to_run(question, free, sizes, bundle)
    if "build" in question.aims and sizes:
        yield from _memory_to_build(question, free, sizes)


def _memory_to_run(
    question: Question, free: int, sizes: Mapping[str, Mapping[str, int]], bundle: Mapping[str, Any] | None
) -> Iterator[Finding]:
    slots = 1 if question.aim == "run" else question.slots
    if bundle is not None and not bundle["on_onnxruntime"]:
        return  # its weights are in the GPU's memory
    smallest = min(sizes, key=lambda name: sizes[name]["weights"], default=None)
    if bundle is None and smallest is None:
        return
    model = sizes[str(smallest)] if bundle is None else bundle
    name = f"The released model in {smallest}" if bundle is None else "This bundle"
    loaded, first = model["loaded"], model["first"]
    fitting = (free - loaded) // model["session"]
    taken = (
        f"{name} needs about {gigabytes(loaded)} on the processor, {gigabytes(first)} during the first load, and "
        f"up to {gigabytes(model['session'])} for each conversation"
    )
    details = {"loaded_nbytes": loaded, "first_nbytes": first, "session_nbytes": model["session"], "slots": slots}
    if fitting < 1:
        advice = "Free memory or raise the limit, or build with fewer bits (--precision) or a smaller --capacity."
        stops = tuple(aim for aim in RUNNING if aim in question.aims)
        yield Finding("memory", PROBLEM, f"{taken}; {gigabytes(free)} free.", advice, stops, details)
    elif fitting < slots:
        fact = f"{taken}: {_count(fitting, 'conversation')} of {slots} fit."
        advice = f"Serve fewer, --slots {fitting}, or build with a smaller --capacity."
        yield Finding("memory", WARNING, fact, advice, details=details)
    elif free < first:
        advice = "If the first load is killed, free memory for it: later loads need less."
        yield Finding("memory", WARNING, f"{taken}; {gigabytes(free)} free.", advice, details=details)
    else:
        yield Finding("memory", OK, f"{taken}.", details=details)


def _memory_to_build(question: Question, free: int, sizes: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    name = question.precision or min(sizes, key=lambda each: sizes[each]["weights"])
    size, share = sizes[name], COMPILED if question.gpu else BUILT
    needed = int(share * size["sixteen_bits"]) + BESIDE_NBYTES
    what = f"A build in {name}{' with engines' if question.gpu else ''} needs about {gigabytes(needed)}"
    details = {"build_nbytes": needed, "validation_nbytes": size["validation"]}
    if free < needed:
        advice = "Free memory or raise the limit, or build on a larger machine and copy the bundle."
        yield Finding("memory", PROBLEM, f"{what}; {gigabytes(free)} free.", advice, ("build",), details)
    elif free < size["validation"] and not question.gpu:
        validation = f"Its validation needs {gigabytes(size['validation'])} and is skipped here"
        fact = f"{what}. {validation}: {gigabytes(free)} free."
        yield Finding(
            "memory", WARNING, fact, "Validate it on a larger machine: pplex-export validate", details=details
        )
    else:
        yield Finding("memory", OK, f"{what}.", details=details)


def check_disk(
    question: Question, sizes: Mapping[str, Mapping[str, int]], bundle: Mapping[str, Any] | None, cache: Path | None
) -> Iterator[Finding]:
    """Check the space for temporary files, for a build with its checkpoint, and for the graphs that a first load caches.

    `cache`: the folder for files that a build must download from the hub; None without downloads.
    """
    yield from _temporary(question)
    if "build" in question.aims and sizes:
        yield from _disk_to_build(question, sizes, cache)
    if bundle is not None and bundle["to_cache"]:
        yield from _disk_to_load(question, bundle["to_cache"], bundle["writable"])


def _temporary(question: Question) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"pplex")
            file.flush()
    except OSError as error:
        fact = f"No temporary file can be written: {error}"
        stops = tuple(aim for aim in ("build",) if aim in question.aims)
        yield Finding(
            "disk", PROBLEM, fact, "Free space in its folder, or set the variable TMPDIR to another folder.", stops
        )


def _disk_to_build(question: Question, sizes: Mapping[str, Mapping[str, int]], cache: Path | None) -> Iterator[Finding]:
    target = nearest(question.out)
    free, taken = shutil.disk_usage(target).free, {name: size["build"] for name, size in sizes.items()}
    fetched = CHECKPOINT_NBYTES if cache is not None else 0
    details = {"free_nbytes": free, "build_nbytes": taken, "fetched_nbytes": fetched}
    if not os.access(target, os.W_OK):
        yield Finding("disk", PROBLEM, f"{target} is not writable.", "Choose another --out.", ("build",), details)
    if cache is not None and not _same_disk(nearest(cache), target):
        room = shutil.disk_usage(nearest(cache)).free
        if room < fetched:
            fact = f"{nearest(cache)} has {gigabytes(room)} free; the checkpoint needs {gigabytes(fetched)}."
            yield Finding(
                "disk", PROBLEM, fact, "Free some space, or set HF_HOME to another folder.", ("build",), details
            )
        fetched = 0
    beside = f" {gigabytes(fetched)} for the checkpoint, and" if fetched else ""
    fitting = [name for name, nbytes in taken.items() if nbytes + fetched <= free]
    listed = ", ".join(f"{name} {gigabytes(nbytes)}" for name, nbytes in taken.items())
    fact = f"{target} has {gigabytes(free)} free. A build needs{beside} by precision: {listed}."
    if not fitting:
        advice = "Free some space, choose an --out on another disk, or a --precision of fewer bits."
        yield Finding("disk", PROBLEM, fact, advice, ("build",), details)
    elif len(fitting) < len(taken):
        yield Finding("disk", WARNING, fact, f"These fit: --precision {', '.join(fitting)}.", details=details)
    else:
        yield Finding("disk", OK, fact, details=details)


def _disk_to_load(question: Question, needed: int, writable: bool) -> Iterator[Finding]:
    folder = Path(str(question.bundle))
    free = shutil.disk_usage(folder).free
    details = {"free_nbytes": free, "to_cache_nbytes": needed}
    slower = "Each load then prepares the bundle again, which takes several times as long."
    if not writable:
        fact = f"{folder} is not writable. {slower}"
        yield Finding("disk", WARNING, fact, "Make its folder caches/ writable for the first load.", details=details)
    elif free < needed:
        fact = f"{folder} has {gigabytes(free)} free; the first load caches up to {gigabytes(needed)}. {slower}"
        yield Finding("disk", WARNING, fact, "Free some space.", details=details)
    else:
        fact = f"{folder} has {gigabytes(free)} free; the first load caches up to {gigabytes(needed)}."
        yield Finding("disk", OK, fact, details=details)


def nearest(path: Path) -> Path:
    """The folder itself, or the closest one above it that exists."""
    absolute = Path(os.path.abspath(path))
    return next((each for each in (absolute, *absolute.parents) if each.is_dir()), Path("/"))


def _same_disk(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
