"""The stand-in's shared libraries, compiled once: one for each library that ONNX Runtime's CUDA provider uses."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

FOLDER = Path(sys.prefix) / "cuda"  # onnxruntime-gpu and CUDA's headers
SOURCES = Path(__file__).parent
CACHE = SOURCES.parents[1] / ".cache" / "cuda_stand_in"
# In load order: the other libraries write into the events of cudart.
LIBRARIES = (
    "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9", "libcurand.so.10", "libcuda.so.1"
)  # fmt: skip
_PROVIDER = FOLDER / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
_HEADERS = FOLDER / "nvidia" / "cu13" / "include"
_SETTING_UP = re.compile("Create|Destroy|Get|Set|Init|Encode")  # functions that launch no kernel


def missing() -> str | None:
    """The first missing requirement of the stand-in, with the command that installs it; None if nothing is missing."""
    if sys.platform != "linux":
        return "the CUDA stand-in replaces shared libraries of Linux"
    if not (_PROVIDER.is_file() and _HEADERS.is_dir()):
        return f"onnxruntime-gpu is not in {FOLDER}: rm .venv/test && make .venv/test"
    tools = [tool for tool in ("cc", "nm", "c++filt") if not shutil.which(tool)]
    return f"{', '.join(tools)} not found: install a C compiler and binutils" if tools else None


def build() -> Path:
    """The folder of the libraries; built if missing."""
    provider = _PROVIDER.stat()
    mark = hashlib.sha256(repr((provider.st_size, provider.st_mtime_ns)).encode())
    for source in (Path(__file__), *sorted(SOURCES.glob("*.[ch]"))):
        mark.update(source.read_bytes())
    out = CACHE / mark.hexdigest()[:16]
    if not out.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        made, wanted = Path(mkdtemp(dir=CACHE)), _wanted()
        for library in LIBRARIES:
            _compile(library, [name for name, of in wanted if of == library], made)
        try:
            made.rename(out)
        except OSError:  # another process has just built it
            shutil.rmtree(made)
    return out


def _wanted() -> list[tuple[str, str]]:
    """The functions that the provider imports from CUDA's libraries, and the library of each."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", _PROVIDER], capture_output=True, text=True, check=True)
    linked = re.findall(r" U (cu[^@\s]+)(?:@(\S+))?", listed.stdout)
    # It looks up the functions of cuDNN by name, when a convolution runs.
    named = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", _PROVIDER.read_bytes())}
    wanted = [(name, library or "libcuda.so.1") for name, library in linked]
    return wanted + [(name, "libcudnn.so.9") for name in sorted(named)]


def _compile(library: str, functions: list[str], out: Path) -> None:
    """Functions without a definition return success; every function of the CUDA runtime must be defined."""
    name = library.removeprefix("lib").partition(".")[0]
    stubs, versions, source = out / f"{name}_stubs.c", out / f"{name}.map", SOURCES / f"{name}.c"
    stubs.write_text('#include "events.h"\n' + "".join(_stub(f) for f in functions if name != "cudart"))
    versions.write_text(f"{library} {{ global: *; }};\n")
    sources = [path for path in (stubs, source) if path.exists()]
    compiler = ["cc", "-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{_HEADERS}"]
    linked = [f"-Wl,-soname,{library}", f"-Wl,--version-script,{versions}", "-lpthread"]
    subprocess.run([*compiler, *map(str, sources), *linked, "-o", str(out / library)], check=True)


def _stub(function: str) -> str:
    done = "0" if _SETTING_UP.search(function) else f'stand_in_call("{function}")'
    return f"__attribute__((weak)) int {function}(void) {{ return {done}; }}\n"
