"""The standard streams as a shell may leave them: closed."""

import os
import sys


def open_standard_streams() -> None:
    """Put the null device in the place of closed standard streams.

    Otherwise the next file that is opened would get a stream's number, and what libraries print would end in it. Errors and
    progress are lost, as was asked for. `sys.stdout` stays None: whoever has a result to print must say that it cannot.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
