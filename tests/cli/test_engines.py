"""The commands inspect and plan, and the options of the builder."""

import json
import re
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pplex.cli import main
from pplex.cli.engines import engine_options
from pplex.engines.library import EngineOptions
from pplex.runtime.bundle import Bundle
from pplex.runtime.gpus import GPUS

DOCS = Path(__file__).parents[2] / "docs"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_table_in_the_documentation_is_the_output_of_the_command() -> None:
    result = run("plan")
    assert result.exit_code == 0, result.output
    (table,) = re.findall(r"<!-- pplex-export plan -->\n(.*?)<!-- end -->", (DOCS / "gpus.md").read_text(), re.DOTALL)
    assert table.strip() == result.stdout.strip()


def test_plan_has_a_row_for_each_gpu_precision_and_capacity() -> None:
    rows = json.loads(run("plan", "--json", "--precision", "fp16", "--precision", "temporal=int4").stdout)
    assert len(rows) == len(GPUS) * 2 * 3
    assert {row["capacity"] for row in rows} == {3000, 1536, 768}
    assert {row["precision"]["depth"] for row in rows} == {"fp16", "fp32"}


def test_plan_of_a_bundle_and_chosen_gpus(tiny_bundle: Bundle) -> None:
    result = run("plan", str(tiny_bundle.folder), "--gpu", "rtx-4090", "--gpu", "sm_90", "--capacity", "96")
    assert result.exit_code == 0 and "as built slots" in result.stdout
    assert "| GeForce RTX 4090 | rtx-4090 | sm_89 | 24 GB  | tensorrt-rtx |" in result.stdout
    assert re.search(r"\| a GPU of sm_90 .* \| tensorrt .*\| \? +\|", result.stdout)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--gpu", "rtx-9090"], "Unknown GPU 'rtx-9090'"),
        (["--precision", "fp7"], "'fp7'"),
        (["nowhere"], "nowhere is not a folder"),
    ],
)
def test_plan_names_unknown_gpus_and_sources(arguments: list[str], words: str) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 1 and words in result.stderr


def test_inspect_as_table_and_json(tiny_bundle: Bundle) -> None:
    table = run("inspect", str(tiny_bundle.folder))
    assert table.exit_code == 0 and table.stdout.startswith("| graph ") and "\ntemporal: weights FLOAT" in table.stdout
    report = json.loads(run("inspect", str(tiny_bundle.folder), "--json").stdout)
    assert report["capacity"] == 96 and len(report["graphs"]) == 4


@pytest.mark.parametrize("file", ["temporal.data", "tokenizer.model"])
def test_inspect_verifies_every_file_if_asked(tiny_bundle: Bundle, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    done = run("inspect", str(folder), "--verify")
    assert done.exit_code == 0 and f"verified: {len(tiny_bundle.manifest['files'])} files" in done.stdout
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)
    done = run("inspect", str(folder), "--verify", "--json")
    assert done.exit_code == 1 and f"{file} does not have the SHA-256 of the manifest" in done.stderr


def test_inspect_refuses_a_folder_that_is_not_a_bundle(tmp_path: Path) -> None:
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 1 and "is not a bundle" in result.stderr


@pytest.mark.parametrize(
    "arguments, options",
    [
        ([], EngineOptions()),
        (["--tf32", "--workspace-mb", "512"], EngineOptions(tf32=True, workspace_mb=512)),
        (["--optimization-level", "5"], EngineOptions(optimization_level=5)),
        (["--compiled-for", "any"], EngineOptions(compiled_for="any")),
    ],
)
def test_engine_options_reach_a_command_as_one_object(arguments: list[str], options: EngineOptions) -> None:
    @click.command()
    @click.argument("name")
    @engine_options
    def command(name: str, engine_options: EngineOptions) -> None:
        assert (name, engine_options) == ("out", options)

    result = CliRunner().invoke(command, ["out", *arguments], catch_exceptions=False)
    assert result.exit_code == 0


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_help_is_one_page(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and len(result.output.splitlines()) < 60
