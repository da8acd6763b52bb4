"""The command about Full-Duplex-Bench: fdb, with run."""

import click

from pplex.cli.command import Group
from pplex.cli.fdb_run import run


@click.group(cls=Group)
def fdb() -> None:
    """Full-Duplex-Bench: run a bundle on its samples."""


fdb.add_command(run)
