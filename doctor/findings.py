"""The question and the findings: the data that all checks share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AIMS = ("build", "run", "serve")
OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One fact. `level`: OK, WARNING or PROBLEM. `advice`: what to do. `stops`: the commands that it makes impossible.

    `details`: figures for JSON.
    """

    check: str
    level: str
    fact: str
    advice: str | None = None
    stops: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What the user asks: a command (`aim`), or None for all; its source, and its options."""

    aim: str | None = None
    source: str | None = None  # a bundle; for build a checkpoint's folder or a repository
    out: Path = Path("bundle")
    precision: str | None = None
    gpu: str | None = None
    device: str | None = None
    slots: int = 8
    host: str = "127.0.0.1"
    port: int = 8998
    tls_folder: Path | None = None
    hub: bool = False

    @property
    def aims(self) -> tuple[str, ...]:
        return AIMS if self.aim is None else (self.aim,)

    @property
    def bundle(self) -> Path | None:
        """The folder to run or serve. Without an aim: the source, unless it is a checkpoint."""
        if self.source is None or self.aim == "build":
            return None
        return None if self.aim is None and self._is_checkpoint else Path(self.source)

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint to build. Without an aim: the source, if it is a checkpoint."""
        return self.source if self.aim == "build" or (self.aim is None and self._is_checkpoint) else None

    @property
    def _is_checkpoint(self) -> bool:
        """Whether the source looks like a checkpoint's folder, or a repository's name."""
        if self.source is None:
            return False
        try:
            if Path(self.source).is_dir():
                return (
                    any(Path(self.source).glob("*.safetensors")) and not (Path(self.source) / "manifest.json").is_file()
                )
        except OSError:
            return False
        return (
            self.source.count("/") == 1
            and not self.source.startswith((".", "/", "~"))
            and not Path(self.source).exists()
        )


Check = Callable[[], Iterable[Finding]]


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """A check's findings. If the check itself fails, the failure becomes a finding."""
    try:
        yield from check()
    except Exception as error:
        fact = f"This check failed: {type(error).__name__}: {error}"
        yield Finding(name, WARNING, fact, "Please report it, with the output of: pplex-export doctor --json")


def gigabytes(nbytes: float) -> str:
    """As in 5.2 GB, of 10^9 bytes; small sizes in MB."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
