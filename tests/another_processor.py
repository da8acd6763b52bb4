"""Stands in for another processor: every weight is off by its last digit, like sums in another order."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pplex.runtime.bundle import Bundle
from pplex.runtime.pipeline import GRAPH_NAMES


def on_another_processor(bundle: Bundle, folder: Path, seed: int, ulps: int = 1) -> Bundle:
    """A copy of a float32 bundle in `folder`, its weights moved up or down by `ulps` of their last digits at random."""
    random = np.random.default_rng(seed)
    shutil.copytree(bundle.folder, folder)
    for graph in GRAPH_NAMES:
        model = onnx.load(bundle.graph_path(graph))
        for tensor in model.graph.initializer:
            weights = numpy_helper.to_array(tensor)
            if weights.dtype == np.float32 and weights.size > 1:
                steps = random.choice(np.array([-ulps, ulps], np.int32), weights.shape)
                moved = (weights.view(np.int32) + np.where(weights == 0, 0, steps)).view(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        for path in folder.glob(f"{graph}.*"):
            path.unlink()
        onnx.save(model, folder / f"{graph}.onnx")
    return replace(bundle, folder=folder)
