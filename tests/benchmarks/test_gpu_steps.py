"""The steps of benchmarks/gpu.sh are existing commands, in the order of their needs."""

from pathlib import Path

import click
import pytest
from gpu_steps import PROBES, GpuRun, all_steps

from pplex.cli import main


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_every_step_is_an_existing_command(tmp_path: Path, device: str, size: str) -> None:
    steps = all_steps(GpuRun(tmp_path, device, size))
    assert len({step.name for step in steps}) == len(steps)
    made = [step.makes.parent for step in steps if step.makes]
    assert len(set(made)) == len(made), "each is removed with its folder"
    before: set[str] = set()
    for step in steps:
        assert {*step.needs, *step.unless} <= before, f"{step.name} comes before what it needs"
        before.add(step.name)
        if step.command[3:4] == ("from pplex.cli import main; main()",):
            parse(step.command[4:])
        else:
            assert step.command[2] == PROBES and step.command[3] in ("machine", "speak", "tests")


def parse(arguments: tuple[str, ...]) -> None:
    """Parse as click does, without calling the command."""
    command: click.Command = main
    rest = list(arguments)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest.pop(0))  # a command is imported on its first use
        assert found is not None
        command = found
    command.make_context(str(command.name), rest)
