"""Missing or broken libraries: turns any of their errors into one message with the command that repairs it.

Called when the runtime loads an engine's library, and by the command line for every other import.
"""

import sys
from importlib import import_module, metadata
from traceback import walk_tb
from types import ModuleType, TracebackType
from typing import Any

from pplex.runtime.errors import LibraryError

# The extra of this package that installs a library; "" for the package alone.
_EXTRAS = dict.fromkeys(("torch", "onnx", "onnxscript", "onnx_ir", "huggingface_hub", "google"), "export")
_EXTRAS |= dict.fromkeys(("jinja2", "markupsafe", "matplotlib", "silero_vad"), "validate")
_EXTRAS |= dict.fromkeys(("aiohttp", "av", "cryptography", "prometheus_client", "uvloop", "yarl"), "serve")
_EXTRAS |= dict.fromkeys(("ray", "uvicorn", "websockets", "yaml"), "scale")
_EXTRAS |= {
    "simpy": "fleet",
    "opentelemetry": "otel",
    "faster_whisper": "transcribe",
    "transformers": "similarity",
    "onnx_asr": "parakeet",
    "onnxruntime": "cpu",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
    "cuda": "cuda",
}
_EXTRAS |= dict.fromkeys(
    ("inflect", "numpy", "pyloudnorm", "safetensors", "sentencepiece", "soundfile", "soxr", "tqdm"), ""
)
_NAMESPACES = ("cuda", "google")  # folders that several packages share; they have no __init__.py
_SYSTEM = {"soundfile": "If that does not help, the system's libsndfile is missing: apt-get install libsndfile1"}


def load_library(module: str, missing: str) -> Any:
    """Import `module`. Raises LibraryError with the text `missing` if it is not installed, else with the reason."""
    try:
        loaded = import_module(module)
    except Exception as error:  # a library may raise anything while it is loaded
        library = module.partition(".")[0]
        raise LibraryError(missing if _is_missing(error, library) else _broken(library, error)) from error
    if _is_empty(loaded):
        raise LibraryError(_broken(module, None))
    return loaded


def library_error(error: BaseException) -> LibraryError | None:
    """The message for an error while a library was loaded or first used; None for any other error."""
    library = _library_of(error)
    if not library or library == "pplex" or library in sys.stdlib_module_names:
        return None
    if _is_missing(error, library):
        if library not in _EXTRAS:
            return None
        return LibraryError(f"This command needs {library}, which is not installed: {install_command(library)}")
    return LibraryError(_broken(library, error))


def _library_of(error: BaseException) -> str | None:
    """The top-level name of the library that failed to load or that is empty."""
    named = _named(error)
    if named in sys.modules and _is_empty(sys.modules[named]):
        return named
    called = _called_by_us(error.__traceback__)
    loaded = [library for library, function in called if function == "<module>"]
    if called and called[0][1] == "<module>":
        return loaded[-1]  # the innermost, as one library loads the next
    if not isinstance(error, ImportError):
        return None
    return called[0][0] if called else named


def _named(error: BaseException) -> str:
    """The top-level name of the module that an error names, or ""."""
    name = error.name if isinstance(error, ImportError) else None
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    return (name or "").partition(".")[0]


def _called_by_us(traceback: TracebackType | None) -> list[tuple[str, str]]:
    """Library and function of each call below our code at the time of the error; a module's body is "<module>"."""
    frames = [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame, _ in walk_tb(traceback)]
    calls = [(module.partition(".")[0], function) for module, function in frames]
    ours = max((place for place, (library, _) in enumerate(calls) if library == "pplex"), default=len(calls))
    return [call for call in calls[ours + 1 :] if call[0] not in sys.stdlib_module_names]


def _is_missing(error: BaseException, library: str) -> bool:
    """Whether the library itself is missing, and not a part of it or one of its requirements."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    return error.name == library or (library in _NAMESPACES and error.name.startswith(f"{library}."))


def _is_empty(module: ModuleType) -> bool:
    """Whether a module is a folder without __init__.py, left by an incomplete installation or removal."""
    return (
        getattr(module, "__file__", None) is None and hasattr(module, "__path__") and module.__name__ not in _NAMESPACES
    )


def _broken(library: str, error: BaseException | None) -> str:
    module = sys.modules.get(library)
    if module is not None and _is_empty(module):
        reason = f"the folder {next(iter(module.__path__), library)} has no __init__.py"
    else:
        reason = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, ModuleNotFoundError) and _named(error) != library:
        advice = f"Install what it needs: {install_command(library)}"
    else:
        packages = metadata.packages_distributions().get(library, [library])
        advice = f"Install it again: pip install --force-reinstall --no-deps {' '.join(sorted(set(packages)))}"
    return "\n".join(
        filter(None, [f"{library} is installed, but cannot be loaded: {reason}", advice, _SYSTEM.get(library)])
    )


def install_command(library: str) -> str:
    """The command that installs a library, given by the name of its module."""
    extra = _EXTRAS.get(library)
    if library == "resemblyzer":  # it asks for packages that need a compiler, or that are part of Python
        return "pip install librosa webrtcvad-wheels && pip install --no-deps resemblyzer"
    if library == "faster_whisper" and "onnxruntime-gpu" in metadata.packages_distributions().get("onnxruntime", ()):
        # It asks for the package onnxruntime, whose files would replace those of onnxruntime-gpu.
        return "pip install ctranslate2 tokenizers huggingface_hub && pip install --no-deps faster-whisper"
    if extra is None:
        return f"pip install {library}"
    return f"pip install 'pplex-export[{extra}]'" if extra else "pip install pplex-export"
