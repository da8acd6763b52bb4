"""Runs a command on the stand-in for CUDA's libraries, for a rehearsal: called by the steps of benchmarks/gpu.py.

    python gpu_stand_in.py pplex-export|SCRIPT ARGUMENT...    SCRIPT lies beside this file

The command runs as on a GPU, but its values and times mean nothing: see tests/cuda_stand_in. Exit code 77 if the
stand-in cannot be built here; the last line says why.
"""

import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
COPIED_NBYTES = 1 << 20  # to measure the bandwidth: here the processor copies
SKIPS = 77


def main() -> int:
    sys.path[:0] = [str(BENCHMARKS.parent / "tests"), str(BENCHMARKS)]
    from cuda_stand_in.build import missing
    from cuda_stand_in.process import StandIn

    if needed := missing():
        print(needed, file=sys.stderr)
        return SKIPS
    StandIn()
    from pplex.bench import bandwidth

    bandwidth.NBYTES = COPIED_NBYTES
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "pplex-export":
        from pplex.cli import main as command

        command()
    else:
        runpy.run_path(str(BENCHMARKS / sys.argv[0]), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
