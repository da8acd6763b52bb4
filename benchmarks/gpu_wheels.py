"""Unpacks wheels that were carried to a machine without a network, whole or in parts: called by benchmarks/gpu.sh.

    python gpu_wheels.py FROM TO

FROM holds wheels, or parts of wheels (NAME.part000, NAME.part001, ...) with SHA256SUMS of the whole wheels. `split -b 48M -d
-a 3 NAME NAME.part` makes the parts. One load may hold only some parts: TO/parts collects them, and each complete wheel is
unpacked into TO/site. Exit code 0: all wheels are unpacked; 3: parts are missing; 1: a wheel is damaged. Needs only Python.
"""

import hashlib
import re
import shutil
import sys
import zipfile
from pathlib import Path

SUMS = "SHA256SUMS"
MISSING = 3


class DamagedError(Exception):
    """All parts of a wheel are here, but their checksum is wrong."""


def collect(source: Path, target: Path) -> list[str]:
    """Add a load; returns a line for every wheel with missing parts. Raises DamagedError."""
    parts, done = target / "parts", target / "done"
    for folder in (parts, done, target / "site"):
        folder.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(source.glob("*.whl")):
        _unpack(wheel, target)
    for part in sorted(source.glob("*.part*")):
        shutil.copyfile(part, parts / part.name)
    sums = _read_sums(source / SUMS) | _read_sums(parts / SUMS)
    (parts / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    missing = []
    for name, digest in sums.items():
        if not (done / name).exists() and (lack := _join(parts, name, digest, target)):
            missing.append(lack)
    return missing


def _read_sums(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {name.lstrip("*"): digest for digest, name in (line.split(maxsplit=1) for line in lines)}


def _join(parts: Path, name: str, digest: str, target: Path) -> str | None:
    """Unpack a wheel if all its parts are here. Otherwise return a line about the missing parts."""
    found = sorted(path for path in parts.glob(f"{name}.part*"))
    numbers = [int(re.sub(r".*\.part", "", path.name)) for path in found]
    gaps = sorted(set(range(max(numbers, default=0) + 1)) - set(numbers))
    if gaps:
        return f"{name}: part {', '.join(f'{gap:03}' for gap in gaps)} is missing"
    whole = target / name
    with whole.open("wb") as file:
        for path in found:
            file.write(path.read_bytes())
    if hashlib.sha256(whole.read_bytes()).hexdigest() == digest:
        _unpack(whole, target)
        for path in (whole, *found):
            path.unlink()
        return None
    whole.unlink()
    # All parts have the same size, only the last one is shorter. If the last one here is shorter, no part is missing.
    if len(found) > 1 and found[-1].stat().st_size < found[0].stat().st_size:
        for path in found:
            path.unlink()
        raise DamagedError(
            f"{name}: the checksum of its {len(found)} parts differs from {SUMS}: carry all of them again"
        )
    return f"{name}: parts after {found[-1].name[-3:]} are missing, or the wheel is damaged"


def _unpack(wheel: Path, target: Path) -> None:
    if not (target / "done" / wheel.name).exists():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target / "site")
        (target / "done" / wheel.name).touch()


def main() -> int:
    try:
        missing = collect(Path(sys.argv[1]), Path(sys.argv[2]))
    except (DamagedError, OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print("\n".join(missing), file=sys.stderr, end="\n" if missing else "")
    return MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main())
