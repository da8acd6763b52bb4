"""The packages that our package needs, and the versions it was tested with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

PACKAGE = "pplex-export"
# The lock files are installed with the package: pplex/requirements beside pplex/doctor, as in a checkout.
LOCKS = Path(__file__).resolve().parents[1] / "requirements"
# Packages whose module has another name.
_MODULES = {
    "cuda-bindings": "cuda.bindings.runtime",
    "onnxruntime-gpu": "onnxruntime",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-sdk": "opentelemetry.sdk.trace",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
}
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[[\w,.-]+\])?\s*(?:(>=|==)\s*([\w.]+))?\s*(?:;(.*))?")


@dataclass(frozen=True)
class Requirement:
    """A needed package. `extra`: "" if every command needs it. `least`: the oldest version; with `exact`, the only one."""

    name: str
    extra: str
    least: str | None
    exact: bool

    @property
    def module(self) -> str:
        return _MODULES.get(self.name, self.name.replace("-", "_"))

    @property
    def bound(self) -> str:
        """As in >=2.3, for pip."""
        return f"{'==' if self.exact else '>='}{self.least}" if self.least else ""

    @cached_property
    def version(self) -> str | None:
        """The installed version."""
        return installed(self.name)

    @property
    def fits(self) -> bool:
        """Whether the installed version is new enough; True for a package without metadata."""
        if self.version is None or self.least is None:
            return True
        have, want = numbers(self.version), numbers(self.least)
        return have == want if self.exact else have >= want


def requirements() -> list[Requirement]:
    """The requirements in our package's metadata. Raises PackageNotFoundError if it is not installed."""
    return [parse(line) for line in metadata.requires(PACKAGE) or []]


def parse(line: str) -> Requirement:
    """Parse a line of our own metadata, which uses >= and == only. Raises ValueError for other lines."""
    found = _REQUIREMENT.fullmatch(line.strip())
    if found is None:
        raise ValueError(f"{line!r} cannot be read as a requirement")
    name, sign, version, marker = found.groups()
    extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker or "")
    return Requirement(name.lower(), extra[1] if extra else "", version, sign == "==")


def normalized(name: str) -> str:
    """The canonical form of a package name: prometheus_client is prometheus-client."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_name(line: str) -> str:
    """The package named in a requirement line of any package, normalized."""
    found = re.match(r"[\w.-]+", line.strip())
    return normalized(found[0]) if found else ""


def installed(name: str) -> str | None:
    """The installed version of a package; None if its metadata is missing or unreadable."""
    try:
        return metadata.version(name)
    except Exception:  # an incomplete installation
        return None


def locked_versions() -> Mapping[str, str]:
    """The tested version of each package, by normalized name; empty without the lock files."""
    found: dict[str, str] = {}
    for name in ("cuda.txt", "test.txt"):
        try:
            lines = (LOCKS / name).read_text().splitlines()
        except OSError:
            continue
        found |= {normalized(pin[1]): pin[2] for line in lines if (pin := re.match(r"([\w.-]+)==([^\s;]+)", line))}
    return found


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers to compare: 2.13.0+cpu is (2, 13); trailing zeros are dropped."""
    parts = [int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version)[0])]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
