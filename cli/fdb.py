"""The command about Full-Duplex-Bench: fdb, with run and score."""

import click

from pplex.cli.command import Group
from pplex.cli.fdb_run import run
from pplex.cli.fdb_score import score


@click.group(cls=Group)
def fdb() -> None:
    """Full-Duplex-Bench: measure how an agent takes turns, as others publish it."""


fdb.add_command(run)
fdb.add_command(score)
