"""Runs graphs on ONNX Runtime: on the host with its CPU provider, on a GPU with its CUDA provider.

Called by `runtime.backend`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from pplex.runtime.cgroup import available_processors
from pplex.runtime.cuda_device import ALLOCATION_ALIGNMENT, GPU, CudaDevice
from pplex.runtime.device import Buffer, Call, HostDevice
from pplex.runtime.errors import BundleError, EngineError
from pplex.runtime.graphs import GraphSpec, TensorSpec
from pplex.runtime.kernel_choice import chosen_kernel
from pplex.runtime.kernel_graph import pack_graph
from pplex.runtime.libraries import load_library
from pplex.runtime.mapped import HugePages, MappedFile
from pplex.runtime.precision import BUILT, storage_dtype
from pplex.runtime.prepared import PreparedGraph

BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: for IO binding, because numpy does not have the type
CPU_ONLY = ("CPUExecutionProvider",)
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_UNREADABLE = (BundleError, OSError, ValueError)  # errors of a cached graph that is damaged or gone
NO_CUDA_GRAPH = "-1"  # gpu_graph_id of a call that is not captured


class OnnxRuntimeExecutor:
    """A graph on ONNX Runtime's CPU provider.

    `weights`: the folder of its weights, if it is not the graph's. `prepared`: the cached optimised graph, which is made if
    it is missing. `profiles`: a folder for the times of every operator. Raises LibraryError if ONNX Runtime cannot be
    loaded, EngineError for a precision that the provider does not support, BundleError if it refuses the graph.
    """

    alignment = 1
    capturable = True
    fixed_rings = one_thread = False

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        device: HostDevice,
        threads: int | None = None,
        precision: str = "fp32",
        weights: Path | None = None,
        prepared: PreparedGraph | None = None,
        profiles: Path | None = None,
    ):
        self.spec, self._device = spec, device
        if BUILT[precision].activations == "bfloat16":
            raise EngineError(
                f"{spec.name} is in bf16, which ONNX Runtime cannot compute on the processor. "
                "Run it on a GPU, or rebuild it: pplex-export build CHECKPOINT --out BUNDLE"
            )
        options = partial(_options, precision, threads, profiles and profiles / spec.name)
        mapped = (weights or path.parent) / f"{spec.name}.data"
        self._session = (prepared and _prepared_session(path, precision, options, prepared)) or _cpu_session(
            path, precision, options(), mapped
        )

    def bind(self, tensors: Mapping[str, Buffer], repeated: bool) -> Call:
        binding = _binding(self._session, self.spec, tensors, "cpu", 0)
        return partial(self._device.enqueue, partial(self._session.run_with_iobinding, binding))

    def save_cache(self) -> None:
        """Nothing to save: the provider prepares everything at load."""

    def end_profile(self) -> Path:
        """Stop timing operators; returns the file with their times, a list of Chrome's trace events."""
        return Path(self._session.end_profiling())


class OnnxRuntimeCudaExecutor:
    """A graph on ONNX Runtime's CUDA provider, on the device's own stream.

    If all nodes run on the GPU, the provider itself captures each repeated call as a CUDA graph; otherwise `uncaptured` has
    the reason. `fused_blocks`: multiply weights in blocks without writing them in 16 bits first, for any number of slots;
    the provider can do that only if every matrix has a multiple of 128 rows and columns. Raises the errors of
    OnnxRuntimeExecutor.
    """

    alignment = ALLOCATION_ALIGNMENT  # some kernels load several values at once
    uncaptured: str | None
    capturable = False  # the provider allocates and synchronizes during a call, which a capture forbids

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        device: CudaDevice,
        precision: str = "fp32",
        weights: Path | None = None,
        fused_blocks: bool = False,
    ):
        self.spec, self._device = spec, device
        fused_blocks = fused_blocks and BUILT[precision].block > 0
        self._graph_ids = count(1)
        provider = {
            "device_id": str(GPU),
            "has_user_compute_stream": "1",
            "user_compute_stream": str(device.stream),
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles the memory, most of which is weights
            "use_tf32": "0",  # TF32's 10-bit mantissas sometimes change a greedy choice
            "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm of every convolution at load
        }
        captured = {**provider, "enable_cuda_graph": "1"}
        try:
            self._session = _cuda_session(path, precision, captured, weights, fused_blocks)
            self.uncaptured = None
        except BundleError as error:  # a node runs on the processor, so the provider cannot capture the graph
            self._session = _cuda_session(path, precision, provider, weights, fused_blocks)
            self.uncaptured = str(error)
        # The provider never frees a captured graph, and has graphs of its own for each thread that calls it.
        self.fixed_rings = self.one_thread = self.uncaptured is None

    def bind(self, tensors: Mapping[str, Buffer], repeated: bool) -> Call:
        ort = _library()
        binding = _binding(self._session, self.spec, tensors, "cuda", GPU)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)) if repeated else NO_CUDA_GRAPH)

        def call() -> None:
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                raise EngineError(
                    f"ONNX Runtime {ort.__version__} cannot run {self.spec.name} on the GPU: {error}"
                ) from error

        return call

    def save_cache(self) -> None:
        """Nothing to save: the provider's kernels are precompiled."""


def has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime was built for NVIDIA GPUs."""
    return "CUDAExecutionProvider" in _library().get_available_providers()


def library_version() -> str:
    """Version of the installed ONNX Runtime. Raises LibraryError if it cannot be loaded."""
    version: str = _library().__version__
    return version


def available_threads() -> int:
    """Threads that this process can run at once, within its affinity and its control groups' quota."""
    return available_processors()


def _library() -> Any:
    return load_library(
        "onnxruntime", "This bundle runs on ONNX Runtime: pip install 'pplex-export[cpu]', or [cuda] for an NVIDIA GPU"
    )


def _options(precision: str, threads: int | None, profile: Path | None = None) -> Any:
    options = _library().SessionOptions()
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, os.fspath(profile)
    options.intra_op_num_threads = threads or available_threads()
    options.log_severity_level = 3
    # Packing weights for the processor takes most of a load.
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    # The four graphs take turns: threads of an idle graph must not spin while the next one runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if BUILT[precision].weights.startswith("float8"):
        # ONNX Runtime would fuse Q/DQ around a MatMul into an operator without an fp8 kernel.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _cuda_session(
    path: Path, precision: str, provider: Mapping[str, str], weights: Path | None, fused_blocks: bool
) -> Any:
    _library().preload_dlls()  # CUDA's libraries, if pip installed them
    options = _options(precision, threads=1)
    if fused_blocks:
        options.add_session_config_entry("ep.cuda.fpa_intb_gemm", "1")
    # The CPU provider runs the other nodes, which compute shapes.
    providers = [("CUDAExecutionProvider", dict(provider)), "CPUExecutionProvider"]
    return _session(path, precision, options, providers, weights)


def _prepared_session(path: Path, precision: str, options: Callable[[], Any], prepared: PreparedGraph) -> Any | None:
    """A session from the cached optimised graph. A missing graph is made; None if that fails."""

    def load() -> Any:
        unchanged = options()
        unchanged.graph_optimization_level = _library().GraphOptimizationLevel.ORT_DISABLE_ALL
        return _cpu_session(prepared.model, precision, unchanged, prepared.weights, prepared.packed)

    if prepared.is_there:
        try:
            return load()
        except _UNREADABLE:
            prepared.discard()
    if prepared.make(partial(_prepare, path, precision, options, prepared)):
        with suppress(*_UNREADABLE):  # another process may have replaced one of the files
            return load()
    return None


def _cpu_session(path: Path, precision: str, options: Any, weights: Path, packed: Path | None = None) -> Any:
    """A session that maps the file `weights`. It copies only the weights that it packs for the processor.

    `packed`: weights that our kernel reads as they are.
    """
    if not weights.is_file():  # small weights are inside the graph's file
        return _session(path, precision, options, CPU_ONLY)
    mapped = MappedFile(weights)
    held: list[MappedFile | HugePages] = [mapped, HugePages(packed)] if packed else [mapped]
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    options.add_external_initializers_from_files_in_memory(
        [one.name for one in held], [one.bytes for one in held], [len(one.bytes) for one in held]
    )
    kernel = chosen_kernel() if packed else None
    if kernel:
        options.register_custom_ops_library(os.fspath(kernel.path))
    with mapped.giving_back():
        session = _session(path, precision, options, CPU_ONLY, in_memory=True)
    session.held = held  # must live as long as the session
    return session


def _prepare(path: Path, precision: str, options: Callable[[], Any], prepared: PreparedGraph, folder: Path) -> None:
    """Write the files of `prepared` to `folder`: the graph as ONNX Runtime optimises it, and packed for our kernel."""
    model, weights = folder / prepared.model.name, folder / prepared.weights.name
    if prepared.packed is None:
        return _optimise(path, precision, options(), model, weights.name)
    optimised = folder / "optimised.onnx"
    _optimise(path, precision, options(), optimised, "optimised.data")
    pack_graph(optimised, folder / "optimised.data", model, weights.name, prepared.packed.name)


def _optimise(path: Path, precision: str, options: Any, model: Path, weights: str) -> None:
    """Write the graph as ONNX Runtime optimises it to `model`, and its weights to the file `weights` beside it."""
    options.optimized_model_filepath = os.fspath(model)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", weights),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(key, value)
    _session(path, precision, options, CPU_ONLY)


def _session(
    path: Path,
    precision: str,
    options: Any,
    providers: Sequence[Any],
    weights: Path | None = None,
    in_memory: bool = False,
) -> Any:
    """`weights`: the folder of the weights; `in_memory`: the options hold them."""
    ort = _library()
    model: str | bytes = os.fspath(path)
    if in_memory or weights not in (None, path.parent):
        model = path.read_bytes()  # not the path: ONNX Runtime would look for the weights beside the file
    if weights is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, os.fspath(weights))
    # Not fused: ONNX Runtime would turn a matrix product and the next addition into a Gemm. A Gemm cannot use
    # block-quantized weights, and would convert them to floats in every call.
    disabled = ["MatMulAddFusion"] if BUILT[precision].block else None
    try:
        return ort.InferenceSession(model, options, providers=list(providers), disabled_optimizers=disabled)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error


def _binding(session: Any, spec: GraphSpec, tensors: Mapping[str, Buffer], device: str, index: int) -> Any:
    def bind(bind_one: Any, tensor: TensorSpec) -> None:
        bind_one(tensor.name, device, index, *_place(tensors[tensor.name]))

    binding = session.io_binding()
    for tensor in spec.all_inputs:
        bind(binding.bind_input, tensor)
    for tensor in spec.all_outputs:
        if tensor.name in tensors:
            bind(binding.bind_output, tensor)
    named = {output.name for output in session.get_outputs()}
    for state in (state for state in spec.state if state.written in named):
        binding.bind_output(state.written, device, index, *_place(tensors[state.present]))
    return binding


def _place(buffer: Buffer) -> tuple[Any, tuple[int, ...], int]:
    """Type, shape and address of a buffer, for IO binding."""
    dtype = BFLOAT16 if buffer.dtype == "bfloat16" else storage_dtype(buffer.dtype).type
    return dtype, buffer.shape, buffer.address
