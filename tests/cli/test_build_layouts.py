"""`build` and `validate` with a LoRA and without voices, as a user runs them."""

from pathlib import Path

import pytest
import torch
from adapters import matrices, write_adapter
from click.testing import CliRunner, Result
from layouts import by_step, copied, remove_voices, rename_lm, weights_of

from pplex.cli import main
from pplex.export.layout import CONSOLIDATED_FILE
from pplex.runtime.bundle import file_sha256, open_bundle

SHAPES = {"text_linear.lora_A.weight": (4, 32), "text_linear.lora_B.weight": (400, 4)}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint without voices, an adapter for it, and their bundle."""
    folder = tmp_path_factory.mktemp("tuned")
    checkpoint = copied(folder / "checkpoint")
    remove_voices(checkpoint)
    rename_lm(checkpoint, CONSOLIDATED_FILE, by_step(weights_of(checkpoint)))
    (folder / "adapter").mkdir()
    write_adapter(folder / "adapter" / "lora.safetensors", matrices(SHAPES), {"lora_rank": 4, "lora_scaling": 2.0})
    result = run("build", checkpoint, "--lora", folder / "adapter", "--precision", "fp32", "--out", folder / "bundle")
    assert result.exit_code == 0, result.output  # also: its graphs are the model with the adapter
    return folder


def test_the_manifest_lists_the_files_there_are_and_the_adapter(tuned: Path) -> None:
    bundle, adapter = open_bundle(tuned / "bundle"), tuned / "adapter" / "lora.safetensors"
    origin = bundle.manifest["checkpoint"]
    assert next(iter(origin["files"])) == CONSOLIDATED_FILE and len(origin["files"]) == 3
    assert origin["files"][CONSOLIDATED_FILE] == file_sha256(tuned / "checkpoint" / CONSOLIDATED_FILE)
    expected = {"file": "lora.safetensors", "sha256": file_sha256(adapter), "rank": 4, "scaling": 2.0}
    assert origin["lora"] == expected
    assert bundle.manifest["voices"] == [] and not bundle.voices
    shown = run("inspect", tuned / "bundle").output
    assert (
        "made from a local checkpoint, with the LoRA adapter lora.safetensors (rank 4, scaling 2)\nvoices: none"
        in shown
    )
    assert bundle.manifest["parity"]["passed"]


def test_a_bundle_is_validated_with_its_adapter_only(tuned: Path) -> None:
    command = ("validate", tuned / "bundle", "--reference", tuned / "checkpoint", "--only", "codec", "--frames", 64)
    without = run(*command)
    assert without.exit_code == 1 and "built with the adapter lora.safetensors. Name it: --lora FILE" in without.output
    other = write_adapter(tuned / "other.safetensors", {key: torch.ones(shape) for key, shape in SHAPES.items()})
    for arguments in ((tuned / "adapter", "--lora-scaling", 1.0), (other, "--lora-scaling", 2.0)):
        result = run(*command, "--lora", *arguments)
        assert result.exit_code == 1 and "another adapter than" in result.output, result.output


@pytest.mark.parametrize(
    "options, words",
    [
        (("--lora-scaling", 2), "add --lora FILE"),
        (("--lora-scaling", 0, "--lora", "x"), "not a number other than 0"),
        (("--lora", "x", "--lora-scaling", "nan"), "not a number other than 0"),
        (("--lora-scaling", "much", "--lora", "x"), "not a valid float"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, options: tuple[object, ...], words: str) -> None:
    result = run("build", tmp_path, "--out", tmp_path / "bundle", *options)
    assert result.exit_code == 2 and words in result.output
