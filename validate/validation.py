"""The whole validation: a bundle held to the checkpoint it was built from, section by section, to one report."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from pplex.bench.measure import machine
from pplex.export.checkpoint import REQUIRED_FILES, Checkpoint
from pplex.export.conversations import SPEECH_FRAMES, recorded_pieces, token_history, unheard_pieces
from pplex.runtime.audio import Pcm
from pplex.runtime.bundle import Bundle, file_sha256
from pplex.runtime.errors import ReportError
from pplex.runtime.ort import has_cuda_provider
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.validate.drift_section import drift_section
from pplex.validate.graph_section import graph_section
from pplex.validate.probes import can_be_probed, link
from pplex.validate.report import Measure, Report, Section, Tolerance
from pplex.validate.streaming import batch_measures, state_measures
from pplex.validate.widen import widen_bundle

SECTIONS = ("graphs", "drift", "codec", "streaming", "conversation")
FRAMES, BEYOND = 3000, 128  # of the token history, and how far past the ring's end it goes at least
PIECES = 16  # of recordings, 7.7 s each
SLOTS = 4  # conversations side by side
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt", "torch", "numpy")
