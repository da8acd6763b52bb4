"""A process under strace: its name lookups, its connections, and its changes on the disk.

strace sees C++ libraries as well as Python. It must be allowed to trace our processes.
"""

import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_S = 120
ADDRESSING = ("bind", "connect", "sendto", "sendmsg", "sendmmsg")  # system calls that may name an address
STRACE = [
    "strace", "-ff", "--seccomp-bpf", "-qq", "-y", "-s", "4096", "-e", "signal=none",
    "-e", f"trace=%file,{','.join(ADDRESSING)}",
]  # fmt: skip

LOOK_UP_FILES = {"/etc/resolv.conf", "/etc/hosts"}  # the C library reads these only to resolve a host name
DNS_PORT = "53"
# System calls that take a path and change nothing. All others count as changes, `open` depending on its flags.
READING = {
    "access", "chdir", "execve", "execveat", "faccessat", "faccessat2", "fstatat64", "getcwd", "getxattr", "lgetxattr",
    "listxattr", "llistxattr", "lstat", "newfstatat", "readlink", "readlinkat", "stat", "statfs", "statx",
    "inotify_add_watch", "name_to_handle_at",
}  # fmt: skip
OPENING = {"open", "openat", "openat2"}
CHANGING = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)")
FREE = ("/dev/null", "/dev/tty", "/dev/shm/sem.")  # semaphores lose their name before use
RESULT = re.compile(r"\) += ")
PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
SOCKET = re.compile(r"sa_family=(AF_\w+)")
ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"|sun_path=@?"([^"]+)"')
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")


@dataclass
class Traced:
    """The actions of a process and its children, known after it ends."""

    output: str = ""
    errors: str = ""
    code: int | None = None
    looked_up: list[str] = field(default_factory=list)  # system calls that resolve host names
    reached: list[str] = field(default_factory=list)  # addresses except loopback
    changed: list[Path] = field(default_factory=list)  # paths that were created, written, renamed, removed, or tried

    def changed_outside(self, *folders: Path) -> list[Path]:
        return [path for path in self.changed if not any(path.is_relative_to(folder.resolve()) for folder in folders)]


def why_not() -> str | None:
    """The reason why tracing does not work here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run([*STRACE, "-o", os.devnull, "true"], capture_output=True, text=True)
    return f"strace: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Room:
    """Folders for one process: an empty home, a folder for temporary files, and a working folder."""

    work: Path
    home: Path
    temporary: Path

    @classmethod
    def make(cls, folder: Path) -> "Room":
        room = cls(*(folder / name for name in ("work", "home", "temporary")))
        for path in (room.work, room.home, room.temporary):
            path.mkdir(parents=True)
        return room

    def environment(self, **more: str) -> dict[str, str]:
        """No other variables of ours: none that silences a library or names a cache.

        Python writes no bytecode, and USER is set so that nothing looks it up.
        """
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        own = {"HOME": str(self.home), "TMPDIR": str(self.temporary), "LOGNAME": "user", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **own, **more}


@contextmanager
def tracing(
    code: str, arguments: Sequence[str], room: Room, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], Traced]]:
    """`python -c code arguments` and its actions, known after the `with`, which ends it with SIGTERM."""
    traced = Traced()
    with tempfile.TemporaryDirectory() as folder:
        command = [*STRACE, "-o", f"{folder}/calls", sys.executable, "-c", code, *arguments]
        with (
            Path(folder, "errors").open("w") as errors,
            subprocess.Popen(
                command,
                cwd=room.work,
                env=room.environment(**environment),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process, traced
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                traced.output, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        traced.code, traced.errors = process.returncode, Path(folder, "errors").read_text()
        for calls in sorted(Path(folder).glob("calls.*")):
            _read(calls.read_text(errors="replace"), room.work, traced)


def trace(code: str, arguments: Sequence[str], room: Room, **environment: str) -> Traced:
    """Like `tracing`, for a process that ends by itself."""
    with tracing(code, arguments, room, **environment) as (process, traced):
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    return traced


def _read(calls: str, work: Path, traced: Traced) -> None:
    for line in calls.splitlines():
        name, _, rest = line.partition("(")
        arguments, result = [*RESULT.split(rest, maxsplit=1), ""][:2]
        if name in ADDRESSING:
            _read_address(arguments, line, traced)
        elif not (name in ("mkdir", "mkdirat") and "EEXIST" in result):
            _read_paths(name, arguments, work, traced, line)


def _read_address(arguments: str, line: str, traced: Traced) -> None:
    families, port = SOCKET.findall(arguments), PORT.search(arguments)
    if not families or families[0] == "AF_NETLINK":  # already connected, or a message to the kernel
        return
    found = next((a or b or c for a, b, c in ADDRESS.findall(arguments)), arguments)
    if families[0] == "AF_UNIX" or (port and port[1] == DNS_PORT):
        traced.looked_up.append(line)  # nscd, systemd-resolved, a bus: all unexpected
    if families[0] == "AF_UNIX" or not ipaddress.ip_address(found).is_loopback:
        traced.reached.append(found)


def _read_paths(name: str, arguments: str, work: Path, traced: Traced, line: str) -> None:
    paths = [Path(os.path.normpath(Path(base or work, path))) for base, path in PATH.findall(arguments)]
    if any(str(path) in LOOK_UP_FILES for path in paths):
        traced.looked_up.append(line)
    changes = bool(CHANGING.search(arguments)) if name in OPENING else name not in READING
    if changes:
        traced.changed += [path for path in paths if not str(path).startswith(FREE)]
