"""Waiting for the hub: called by the commands that download or upload."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def ends_at_once() -> Iterator[None]:
    """End the process at Ctrl-C or SIGTERM, with exit code 1.

    Python would first wait for the threads of the hub's library, and unload torch, which takes about a second.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nAborted!", err=True)  # as click says it
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(1)
