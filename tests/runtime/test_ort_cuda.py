"""ONNX Runtime's CUDA provider without a GPU: what it captures and launches, on the stand-in of tests/cuda_stand_in.

The stand-in computes nothing. The provider uses int8 and int4 weights directly only if rows and columns are multiples of
128; the golden model's are shorter, so int8 and int4 use a model of another size.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cuda_stand_in.build import missing
from folders import TINY

from pplex.bench.sweep import FRAME
from pplex.export import synth
from pplex.export.build import BuildOptions, build
from pplex.export.checkpoint import Checkpoint
from pplex.export.exporter import export_graph
from pplex.export.source import CheckpointSource
from pplex.export.storage import storages
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS
from pplex.runtime.precision import PRECISIONS, parse_precision

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TESTS = Path(__file__).parents[1]
BLOCKED = {name: precision for name, precision in PRECISIONS.items() if precision.block}
SLOTS = (1, 2, 4, 17)
ARGUMENTS = {
    "dim": 512, "text_card": 1024, "num_layers": 1,
    "depformer_dim": 128, "depformer_num_layers": 1, "depformer_dim_feedforward": 192,
}  # fmt: skip

CARRIED = 24  # buffers of the codec that a graph reads and writes anew: conv tails and positions
ENCODER_CARRIED = 12  # of mimi_encode

Found = dict[str, Any]


def run_on_stand_in(*arguments: str | Path) -> str:
    """The output of a Python program on the stand-in."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> dict[str, Bundle]:
    """Bundles in int8 and int4. They reuse the golden model's codec, because its export would double the time."""
    folder = tmp_path_factory.mktemp("blocked")
    arguments = {**synth.TINY_ARGUMENTS, "lm": {**synth.TINY_ARGUMENTS["lm"], **ARGUMENTS}}

    def export(name: str, checkpoint: Checkpoint, config: ModelConfig, out: Path, *others: Any, **options: Any) -> None:
        if name in LANGUAGE_GRAPHS:
            export_graph(name, checkpoint, config, out, *others, **options)
        for path in () if name in LANGUAGE_GRAPHS else tiny_bundle.folder.glob(f"{name}.*"):
            shutil.copy(path, out)

    def make(precision: str) -> Bundle:
        options = BuildOptions(precision=parse_precision(precision), calibration=None)
        return open_bundle(build(source, folder / precision, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synth.SIZES, "blocked", synth.Size(arguments, voice_frames=29))
        patch.setattr("pplex.export.build.export_graph", export)
        source = CheckpointSource(synth.synthesize(folder / "checkpoint", "blocked"), None, None)
        return {precision: make(precision) for precision in BLOCKED}


@pytest.fixture(scope="module")
def bundles(blocked: dict[str, Bundle], bundle_of: Callable[..., Bundle]) -> dict[str, Bundle]:
    """A bundle in each precision."""
    return {name: blocked[name] if name in blocked else bundle_of(TINY, name) for name in PRECISIONS}


@pytest.fixture(scope="module")
def found(bundles: dict[str, Bundle]) -> dict[str, Found]:
    """The result of launches.py for each precision."""
    folders, slots = [bundle.folder for bundle in bundles.values()], map(str, SLOTS)
    counted = json.loads(run_on_stand_in("-m", "cuda_stand_in.launches", *folders, "--json", "--slots", *slots))
    return {precision: counted[str(bundle.folder)] for precision, bundle in bundles.items()}


def launched(counts: dict[str, dict[str, int]], kinds: Iterable[str] = ("KERNEL", "LIBRARY")) -> int:
    return sum(sum(counts.get(kind, {}).values()) for kind in kinds)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_is_captured(found: dict[str, Found], precision: str) -> None:
    """A single node without a CUDA kernel would leave its graph uncaptured."""
    assert found[precision]["captured"] == dict.fromkeys(GRAPH_NAMES, True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_capture_does_not_allocate_wait_or_read_from_the_host(found: dict[str, Found], precision: str) -> None:
    """A captured read of the host's memory would run again in every frame, after the memory is reused."""
    assert found[precision]["refused"] == []
    for frame in found[precision]["frames"].values():
        for graph in GRAPH_NAMES:
            assert frame["graphs"][graph].keys() <= {"KERNEL", "LIBRARY", "COPY"}
            assert launched(frame["graphs"][graph]) > 50


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_frame_takes_four_launches_and_one_wait(found: dict[str, Found], precision: str) -> None:
    for frame in found[precision]["frames"].values():
        again = frame["again"]
        assert again.keys() == {"COPY", "REPLAY", "WAIT"}
        assert again["REPLAY"] == {"cudaGraphLaunch": 4} and again["WAIT"] == {"cudaStreamSynchronize": 1}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_frame_takes_one_copy_up_and_one_down(found: dict[str, Found], precision: str) -> None:
    """The other copies are within the device: the codecs' carried state, and the codes that graphs pass on."""
    for frame in found[precision]["frames"].values():
        copies = frame["again"]["COPY"]
        assert (copies["from the host"], copies["to the host"]) == (1, 1)
        assert sum(copies.values()) == 2 + CARRIED + 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_are_passed_on_between_the_graphs(found: dict[str, Found], precision: str) -> None:
    """The user's from mimi_encode to temporal, the agent's from depth to mimi_decode; a replay is followed by copies of
    the codec's carried state."""
    for frame in found[precision]["frames"].values():
        first, *others = (i for i, name in enumerate(frame["order"]) if name == "cudaGraphLaunch")
        assert frame["order"][first - 1] == "from the host"
        between = [after - before - 1 for before, after in pairwise([first, *others])]
        assert between[1:] == [0, 1] and between[0] == 1 + ENCODER_CARRIED


@pytest.mark.parametrize("graph", GRAPH_NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_more_slots_take_as_many_launches(found: dict[str, Found], precision: str, graph: str) -> None:
    """The rows of one slot are contiguous, so copies replace kernels; all other counts are equal."""
    frames = [found[precision]["frames"][str(n)]["graphs"][graph] for n in SLOTS]
    one, *more = [launched(frame, ("KERNEL", "LIBRARY", "COPY")) for frame in frames]
    assert len(set(more)) == 1 and abs(more[0] - one) <= 0.05 * one


@pytest.mark.parametrize("graph", LANGUAGE_GRAPHS)
@pytest.mark.parametrize("precision", BLOCKED)
def test_blocked_weights_are_multiplied_without_conversion(
    found: dict[str, Found], bundles: dict[str, Bundle], precision: str, graph: str
) -> None:
    """Each weight is multiplied by one kernel, and none is written in 16 bits first."""
    bundle = bundles[precision]
    stored = storages(graph, bundle.config, bundle.precision).values()
    for slots, frame in found[precision]["frames"].items():
        kernels = frame["graphs"][graph]["KERNEL"]
        fused = sum(n for name, n in kernels.items() if "fpA_intB" in name or "GemmFpAIntB" in name)
        assert fused == len(stored) and not any(name.startswith("Dequantize") for name in kernels), (slots, kernels)


ATTENTION = """
import sys
from pathlib import Path
from cuda_stand_in.launches import names
from cuda_stand_in.process import StandIn
stand_in = StandIn()
from small_graphs import write_attention
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.engine import Engine, fixed_shape
from pplex.runtime.ort import OnnxRuntimeCudaExecutor
folder, masked, slots = Path(sys.argv[1]), sys.argv[2] == "masked", int(sys.argv[3])
spec, device = write_attention(folder / "attention.onnx", "float16", masked), CudaDevice()
executor = OnnxRuntimeCudaExecutor(folder / "attention.onnx", spec, device, "fp16")
engine = Engine(executor, device, slots, {"C": 3000})
sizes = {"B": slots, "T": 1, "C": 3000}
tensors = {t.name: device.zeros(fixed_shape(t.shape, sizes), t.dtype) for t in (*spec.inputs, *spec.outputs)}
call = engine.bind(tensors, 0, slots)
stand_in.take()
call()
print("\\n".join(names(stand_in.take())))
"""


def attention_kernels(folder: Path, masked: str, slots: int) -> set[str]:
    printed = run_on_stand_in("-c", ATTENTION, folder, masked, str(slots)).split()
    return {name for name in printed if "flash" in name or "attention_kernel" in name}


@pytest.mark.parametrize("slots", [1, 2])
def test_one_step_of_attention_is_split_over_the_keys(tmp_path: Path, slots: int) -> None:
    """At the released size. Each slot reads only the entries that it has written."""
    assert attention_kernels(tmp_path, "lengths", slots) == {
        "flash_fwd_splitkv_kernel",
        "flash_fwd_splitkv_combine_kernel",
    }


@pytest.mark.parametrize("slots", [4, 64])
def test_attention_of_more_slots_needs_no_split(tmp_path: Path, slots: int) -> None:
    """Its 32 heads for each slot occupy the GPU."""
    assert attention_kernels(tmp_path, "lengths", slots) == {"flash_fwd_kernel"}


def test_a_mask_excludes_flash_attention(tmp_path: Path) -> None:
    """So graphs for ONNX Runtime have lengths instead."""
    assert attention_kernels(tmp_path, "masked", 1) == {"attention_kernel_batched_impl_right_padding"}


QUICKLY = """
from cuda_stand_in.process import StandIn
StandIn()
from pplex.bench import bandwidth
from pplex.cli import main
bandwidth.NBYTES = 1 << 20  # copied by the processor here
main()
"""


def test_a_bench_runs_as_on_a_gpu(bundles: dict[str, Bundle]) -> None:
    """Marks, copies, uploads of noise and captured calls for all slots. The times mean nothing on the stand-in."""
    lengths = ("--context-steps", "0", "--context-steps", "150")  # more than the ring holds
    options = ("--device", "cuda", "--slots", "3", "--frames", "5", *lengths, "--json")
    printed = run_on_stand_in("-c", QUICKLY, "bench", "stages", str(bundles["bf16"].folder), *options)
    report = json.loads(printed[printed.index("{") :])
    rows = [(row["slots"], row["context_steps"], row["stage"]) for row in report["rows"]]
    assert rows == [(n, length, stage) for length in (0, 150) for n in (1, 2, 3) for stage in (*GRAPH_NAMES, FRAME)]
    assert report["machine"]["device"] == "Stand-in GPU"


THREADS = """
import sys
import threading
import numpy as np
from cuda_stand_in.process import Kind, StandIn
stand_in = StandIn()
from pplex.runtime.errors import EngineError
from pplex.runtime.session import Runtime
runtime = Runtime.load(sys.argv[1], slots=2, device="cuda")
session = runtime.open(seed=0)

def refused(use):
    try:
        use()
    except EngineError as error:
        print(error)

uses = (
    lambda: session.step(np.zeros(1920, np.float32)),
    lambda: session.step_codes(np.zeros(8, np.int64)),
    lambda: runtime.open(seed=1),
)
for number, use in enumerate(uses):
    before = session.frame, runtime.ring.step.tolist()
    stand_in.take()
    thread = threading.Thread(target=refused, args=(use,), name=f"worker-{number}")
    thread.start()
    thread.join()
    assert (session.frame, runtime.ring.step.tolist()) == before and not stand_in.take()
uses[0]()
assert Kind.CAPTURE not in {event.kind for event in stand_in.take()}
thread = threading.Thread(target=session.close)
thread.start()
thread.join()
assert not session.is_open
"""


def test_another_thread_is_refused_before_it_captures_again(bundles: dict[str, Bundle]) -> None:
    """It changes nothing, and the first thread goes on."""
    said = run_on_stand_in("-c", THREADS, bundles["bf16"].folder).splitlines()
    assert len(said) == 3
    for number, line in enumerate(said):
        assert line.startswith(f"This bundle was loaded in the thread MainThread, and is used in worker-{number}. ")
        assert line.endswith("in one thread: ThreadPoolExecutor(max_workers=1)")


FORBIDDEN = """
from functools import partial
from cuda_stand_in.process import Kind, StandIn
stand_in = StandIn()
from pplex.runtime.cuda_device import CudaDevice
from pplex.runtime.errors import GpuError
device = CudaDevice()
buffer = device.zeros((4,), "float32")
replay = device.capture(partial(device.clear, buffer.whole))
stand_in.take()
replay()
assert [event.kind for event in stand_in.take()] == [Kind.REPLAY]
device.capture(device.synchronize)
"""


def test_the_stand_in_refuses_what_a_capture_forbids() -> None:
    with pytest.raises(AssertionError, match=r"refused cudaStreamSynchronize \(cudaErrorStreamCaptureUnsupported"):
        run_on_stand_in("-c", FORBIDDEN)


def test_a_graph_with_rings_in_int8_is_captured(int8_rings_bundle: Bundle) -> None:
    """It writes them in place, casts each before attention, and has no operator of its own."""
    counted = json.loads(run_on_stand_in("-m", "cuda_stand_in.launches", int8_rings_bundle.folder, "--json"))
    found = counted[str(int8_rings_bundle.folder)]
    assert found["captured"] == dict.fromkeys(GRAPH_NAMES, True) and found["refused"] == []
    kernels = found["frames"]["1"]["graphs"]["temporal"]["KERNEL"]
    rings = 2 * int8_rings_bundle.config.temporal.layers
    assert kernels["_TensorScatterKernel"] == rings
    assert sum(n for name, n in kernels.items() if "Cast" in name) >= rings
