"""Replaces standard streams that the shell has closed: called by `cli`."""

import os
import sys


def open_standard_streams() -> None:
    """Replace closed standard streams by the null device.

    Otherwise the next opened file would get a stream's number, and libraries would print into it. Errors and progress are
    lost, because the user closed their stream. `sys.stdout` stays None: a command that prints its result refuses to run.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
