"""Missing and broken libraries: real commands and imports, in processes with a broken library."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import TINY

from pplex.runtime.bundle import Bundle
from pplex.runtime.libraries import _EXTRAS, install_command

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "engines", "export", "runtime", "server", "validate")
MAIN = "from pplex.cli import main; main()"
NO_LIBRARY = "libmissing.so.1: cannot open shared object file: No such file or directory"
BROKEN = {
    "a shared library that does not load": f"raise ImportError({NO_LIBRARY!r})",
    "no libsndfile": "raise OSError('sndfile library not found')",
    "another ABI": "raise AttributeError('_ARRAY_API not found')",
    "another version of what it needs": "raise TypeError('Descriptors cannot be created directly.')",
    "a part is missing": "import {name}.part",
    "what it needs is missing": "import what_it_needs",
}
# A regular package anywhere on the path wins over a folder without __init__.py. This makes Python find the emptied
# folder instead.
EMPTIED = """
import sys
from importlib.machinery import ModuleSpec

class Emptied:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [{folder!r}]
            return spec

sys.meta_path.insert(0, Emptied())
"""
ABSENT = "import sys; sys.modules[{name!r}] = None\n"  # Python does not find a module of this name


def emptied(folder: Path, name: str) -> str:
    return EMPTIED.format(name=name, folder=str(folder / name))


def broken(folder: Path, name: str, how: str) -> str:
    """Code to run first: afterwards `name` is found in `folder` and fails as `how` describes."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(BROKEN[how].format(name=name))
    return f"import sys; sys.path.insert(0, {str(folder)!r})\n"


def pplex(prelude: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", prelude + MAIN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})


def run_arguments(bundle: Bundle, folder: Path) -> list[str | Path]:
    outputs = ["--output-wav", folder / "agent.wav", "--output-text", folder / "agent.json"]
    return ["run", bundle.folder, "--input-wav", TINY / "checkpoint/voices/synthetic.wav", "--voice", "none", *outputs]


def assert_reported(done: subprocess.CompletedProcess[str], library: str, *words: str) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{library} is installed, but cannot be loaded" in done.stderr
    for text in (*words, "pip install"):
        assert text in done.stderr


@pytest.mark.parametrize("library", ["onnxruntime", "soundfile", "sentencepiece", "safetensors", "numpy"])
def test_an_emptied_library_is_reported(library: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    done = pplex(emptied(tmp_path, library), *run_arguments(tiny_bundle, tmp_path))
    assert_reported(done, library, f"{tmp_path / library} has no __init__.py", f"--force-reinstall --no-deps {library}")


@pytest.mark.parametrize("library", ["aiohttp", "av", "uvloop", "prometheus_client", "yarl"])
def test_an_emptied_library_of_the_server_is_reported(library: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The last library is a dependency of aiohttp."""
    done = pplex(emptied(tmp_path, library), "serve", tiny_bundle.folder, "--port", "0", "--device", "cpu")
    assert_reported(done, library, f"{tmp_path / library} has no __init__.py")


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("library", ["onnxruntime", "soxr"])
def test_a_library_that_fails_to_load_is_reported(library: str, how: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    done = pplex(broken(tmp_path, library, how), *run_arguments(tiny_bundle, tmp_path))
    reason = {"a part is missing": f"{library}.part", "what it needs is missing": "what_it_needs"}
    assert_reported(done, library, reason.get(how) or BROKEN[how].partition("'")[2].rpartition("'")[0])


def test_a_missing_libsndfile_names_the_system_package(tiny_bundle: Bundle, tmp_path: Path) -> None:
    done = pplex(broken(tmp_path, "soundfile", "no libsndfile"), *run_arguments(tiny_bundle, tmp_path))
    assert_reported(done, "soundfile", "sndfile library not found", "apt-get install libsndfile1")


def test_a_broken_library_of_the_build_is_reported(tmp_path: Path) -> None:
    """torch fails with an OSError if CUDA's libraries have another version."""
    done = pplex(broken(tmp_path, "torch", "no libsndfile"), "build", TINY / "checkpoint", "--out", tmp_path / "bundle")
    assert_reported(done, "torch", "OSError")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("kind", ["tensorrt_rtx", "tensorrt"])
def test_a_broken_tensorrt_gives_the_reason_of_the_loader(kind: str, tmp_path: Path) -> None:
    """In a program, the error contains the reason of the loader."""
    code = (
        "from pplex.runtime.errors import LibraryError\nfrom pplex.runtime.trt_library import TENSORRT_LIBRARIES\n"
        f"try:\n    TENSORRT_LIBRARIES[{kind.replace('_', '-')!r}].load()\nexcept LibraryError as error:\n    print(error)"
    )
    preludes = {
        NO_LIBRARY: broken(tmp_path, kind, "a shared library that does not load"),
        "has no __init__.py": emptied(tmp_path, kind),
        "which is not installed: pip install 'pplex-export[": ABSENT.format(name=kind),
    }
    for reason, prelude in preludes.items():
        done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=True)
        assert reason in done.stdout


@pytest.mark.parametrize("library, extra", [("onnxruntime", "pplex-export[cpu]"), ("soxr", "pip install pplex-export")])
def test_a_missing_library_is_reported(library: str, extra: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    done = pplex(ABSENT.format(name=library), *run_arguments(tiny_bundle, tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr and extra in done.stderr


def test_help_needs_no_runtime_library(tmp_path: Path) -> None:
    """A user with a broken installation can still get help."""
    for library in ("onnxruntime", "soundfile", "sentencepiece"):
        done = pplex(emptied(tmp_path, library), "--help")
        assert done.returncode == 0 and "inspect" in done.stdout


@pytest.mark.parametrize("defect", ["raise AttributeError('a defect')", "raise ImportError('x', name='pplex.cli.x')"])
def test_our_own_defect_keeps_its_traceback(defect: str) -> None:
    prelude = f"import pplex.engines.plan_report as p\ndef fail(*_):\n    {defect}\np.report_plans = fail\n"
    done = pplex(prelude, "plan")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_every_imported_library_has_an_install_command() -> None:
    names = {
        name.partition(".")[0]
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
    }
    assert names - set(sys.stdlib_module_names) - {"pplex", "click"} <= _EXTRAS.keys()


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_faster_whisper_is_installed_so_that_onnx_runtime_for_gpus_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install_command("faster_whisper") == "pip install 'pplex-export[transcribe]'"
    facts = tmp_path / "onnxruntime_gpu-1.31.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.0\n")
    (facts / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert install_command("faster_whisper").endswith("&& pip install --no-deps faster-whisper")
