"""The kernels of an engine are read from its file, and slow ones are refused."""

import json
from pathlib import Path

import pytest
from small_graphs import MLP, write_attention, write_mlp

from pplex.engines.compile import compile_engine
from pplex.engines.kernels import computing_only, kernels
from pplex.engines.library import layers_path
from pplex.runtime.errors import BuildError
from pplex.runtime.forms import FOR_ENGINES
from pplex.runtime.gpus import parse_gpu

pytest.importorskip("tensorrt_rtx", reason="pip install 'pplex-export[rtx]'")

DEQUANTIZE = {f"dequantize.w{layer}" for layer in range(4)}


def compiled(folder: Path, weights: str, sm: int) -> Path:
    write_mlp(folder / "mlp.onnx", weights)
    compile_engine(folder / "mlp.onnx", MLP, 1, parse_gpu(f"sm_{sm}"), 4, folder / "mlp.engine")
    return folder / "mlp.engine"


@pytest.mark.parametrize(
    "weights, sm",
    [
        ("int8", 86),
        ("int8", 89),
        ("int8", 120),
        ("int4", 86),
        ("int4", 89),
        ("int4", 120),
        ("float8_e4m3fn", 89),
        ("float8_e4m3fn", 120),
    ],
)
def test_products_read_quantized_weights_directly(tmp_path: Path, weights: str, sm: int) -> None:
    found = kernels(compiled(tmp_path, weights, sm))
    products = [kernel for kernel in found if DEQUANTIZE.intersection(kernel.nodes)]
    assert len(products) >= 8, "four layers in each of two profiles"
    assert not computing_only(found, DEQUANTIZE)


@pytest.mark.parametrize("sm", [86, 89, 120])
def test_products_of_a_mix_read_their_weights_directly(tmp_path: Path, sm: int) -> None:
    """Every form that a mixed precision offers for engines, in one graph."""
    forms = 2 * list(FOR_ENGINES)
    nbytes = write_mlp(tmp_path / "mlp.onnx", " ".join(forms), len(forms))
    compile_engine(tmp_path / "mlp.onnx", MLP, 1, parse_gpu(f"sm_{sm}"), 4, tmp_path / "mlp.engine")
    found = kernels(tmp_path / "mlp.engine")
    quantized = {f"dequantize.w{i}" for i, form in enumerate(forms) if form != "float16"}
    assert all(any(node in kernel.nodes for kernel in found) for node in quantized)
    assert not computing_only(found, quantized)
    facts = json.loads(layers_path(tmp_path / "mlp.engine").read_text())
    assert nbytes <= facts["held_nbytes"] < 1.01 * nbytes, "weights are stored once, as they are"


@pytest.mark.parametrize("sm", [86, 89, 120])
def test_a_kernel_that_only_dequantizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    found = kernels(compiled(tmp_path, "int8 in blocks", sm))
    assert computing_only(found, DEQUANTIZE) == DEQUANTIZE
    monkeypatch.setattr("pplex.engines.compile._SPARE_NBYTES", 1 << 20)
    with pytest.raises(
        BuildError, match=r"dequantizes 4 matrices of mlp.onnx, such as w0, into 2,097,152 bytes in each"
    ):
        compiled(tmp_path, "int8 in blocks", sm)


def test_a_ring_is_written_with_a_grid_as_large_as_the_batch(tmp_path: Path) -> None:
    """In the profiles with a fixed batch. With a batch of any size, the grid covers all 3,000 entries."""
    spec, out = write_attention(tmp_path / "attention.onnx", "float16", masked=True), tmp_path / "attention.engine"
    compile_engine(tmp_path / "attention.onnx", spec, 3000, parse_gpu("rtx-4090"), 8, out)
    writes = [kernel.grid for kernel in kernels(out) if {"write.k.0", "write.v.0"} & set(kernel.nodes)]
    blocks = sorted(grid[0] for grid in writes if grid is not None)
    fixed, whole_ring = [n for n in blocks if n < 3000], [n for n in blocks if n >= 3000]
    assert fixed and whole_ring
    assert {n // fixed[0] for n in fixed} == {1, 2, 4}, "for 2, 4 and 8 slots"
    assert all(n % fixed[0] == 0 for n in fixed)
