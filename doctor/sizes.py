"""Sizes of a model and the state of a bundle, computed as in `plan`, `inspect` and the runtime.

Called in a separate process (`probe`), because it imports numpy and the code that reads a bundle.
"""

import os
from pathlib import Path
from typing import Any

from pplex.engines.choice import by_fidelity, choose, target_of
from pplex.engines.plan import plan, session_nbytes
from pplex.engines.plan_report import open_model
from pplex.engines.processor import ProcessorPlan
from pplex.runtime.backend import check_engines, engines_nbytes, prepared_here
from pplex.runtime.bundle import open_bundle
from pplex.runtime.errors import PplexError
from pplex.runtime.forms import NO_FORMS
from pplex.runtime.gpus import ONNXRUNTIME, FoundGpu, Gpu
from pplex.runtime.parameters import build_nbytes, weights_nbytes
from pplex.runtime.precision import BUILT, PRECISIONS, parse_precision
from pplex.runtime.prepared import GROWTH
from pplex.validate.memory import short_validation_nbytes


def model_sizes(source: str | None, precision: str | None, compiled: bool) -> dict[str, dict[str, int]]:
    """Bytes of the released model, or of a checkpoint's folder, for each precision, or only for the named one."""
    config = open_model(Path(source) if source else None).config
    capacity = config.temporal.capacity
    names = [precision] if precision else list(PRECISIONS)
    return {
        name: {
            "weights": sum(weights_nbytes(config, parsed, compiled).values()),
            "session": sum(session_nbytes(config, parsed, capacity).values()),
            "build": build_nbytes(config, parsed, compiled),
            "loaded": ProcessorPlan(config, parsed, capacity).loaded_nbytes,
            "first": ProcessorPlan(config, parsed, capacity).first_nbytes,
            "validation": short_validation_nbytes(config, parsed, NO_FORMS),
            "sixteen_bits": sum(weights_nbytes(config, parse_precision("fp16")).values()),
        }
        for name in names
        for parsed in [parse_precision(name)]
    }


def slots_by_precision(source: str | None, gpu: dict[str, Any], precision: str | None) -> dict[str, int | None]:
    """Conversations that fit a GPU, as `plan` counts them, for each precision the GPU supports, the most faithful first."""
    model, here = open_model(Path(source) if source else None), Gpu(**gpu)
    if model.precision is not None:
        chosen = {"as built": dict(model.precision)}
    else:
        chosen = {name: parse_precision(name) for name in ([precision] if precision else by_fidelity())}
    plans = {
        name: plan(model.config, parsed, here, model.config.temporal.capacity, model.weights_nbytes)
        for name, parsed in chosen.items()
    }
    return {name: one.slots for name, one in plans.items() if one.possible}


def auto_choice(source: str | None, gpu: dict[str, Any] | None) -> dict[str, Any]:
    """What `build --precision auto` chooses for a GPU, or for this machine: the precision, None if nothing fits, and why."""
    try:
        choice = choose(open_model(Path(source) if source else None).config, target_of(Gpu(**gpu) if gpu else None))
    except PplexError as error:
        return {"precision": None, "reason": str(error)}
    return {"precision": choice.precision, "reason": choice.to_text()}


def bundle_state(folder: str) -> dict[str, Any]:
    """Contents and sizes of a bundle, without hashing. Raises BundleError and AccessError."""
    bundle = open_bundle(Path(folder), verify=False)
    engines = bundle.manifest["engines"]
    capacity = bundle.config.temporal.capacity
    on_processor = ProcessorPlan(bundle.config, bundle.precision, capacity, forms=bundle.forms)
    return {
        "engines": engines,
        "precision": dict(bundle.precision),
        "weights": engines_nbytes(bundle.manifest),
        "session": sum(session_nbytes(bundle.config, bundle.precision, capacity).values()),
        "loaded": on_processor.loaded_nbytes,
        "first": on_processor.first_nbytes,
        "on_onnxruntime": [name for name, engine in engines.items() if engine["kind"] == ONNXRUNTIME],
        "in_bfloat16": [name for name, one in bundle.precision.items() if BUILT[one].activations == "bfloat16"],
        "parity": bundle.manifest["parity"],
        "to_cache": _nbytes_to_cache(Path(folder), bundle.manifest),
        "writable": os.access(folder, os.W_OK),
    }


def _nbytes_to_cache(folder: Path, manifest: Any) -> int | None:
    """Bytes on disk that the first load will cache; 0 after a load, None if ONNX Runtime cannot be asked."""
    try:
        prepared = prepared_here(folder, manifest).values()
    except Exception:  # check_onnxruntime reports why
        return None
    return int(GROWTH * sum(one.nbytes for one in prepared if not one.is_there))


def engine_trouble(engines: dict[str, Any], gpu: dict[str, Any], versions: dict[str, str], slots: int) -> str | None:
    """The runtime's message if the engines cannot run on this GPU with these library versions; None if they can."""
    try:
        check_engines(engines, FoundGpu(**gpu), versions, slots)
    except PplexError as error:
        return str(error)
    return None
