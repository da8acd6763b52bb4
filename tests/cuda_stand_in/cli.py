"""`pplex-export` on the stand-in: PYTHONPATH=tests .venv/bin/python -m cuda_stand_in.cli COMMAND...

The command runs as on a GPU but computes nothing: its printed times and values are meaningless.
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
