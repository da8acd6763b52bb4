"""`pplex-export` on the stand-in: PYTHONPATH=tests .venv/bin/python -m cuda_stand_in.cli COMMAND...

What a command does on a GPU is done, with nothing computed: no time and no value that it prints means anything.
"""

import sys

from cuda_stand_in.build import missing
from cuda_stand_in.process import StandIn

if __name__ == "__main__":
    if needed := missing():
        sys.exit(needed)
    StandIn()
    from pplex.cli import main

    main()
