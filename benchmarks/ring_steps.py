"""A step of the temporal graph by the length of its rings, for two bundles in turn: python benchmarks/ring_steps.py A B

One thread, and the processor time of that thread, which other work on the machine changes least. Prints medians.
"""

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from pplex.runtime.bundle import open_bundle
from pplex.runtime.stages import Stages

LENGTHS, RUNS = (128, 1024, 3000), 15


def main() -> None:
    stages = {folder: Stages(open_bundle(Path(folder), verify=False), slots=1, threads=1) for folder in sys.argv[1:]}
    for length in LENGTHS:
        times: dict[str, list[float]] = {folder: [] for folder in stages}
        for one in stages.values():
            one.kv_cache.reserve(0, np.array([length - 2]))
            one.position[0] = length - 3
        for _ in range(RUNS):
            for folder, one in stages.items():
                start = time.thread_time()
                one.run("temporal", 1)
                times[folder].append(1000 * (time.thread_time() - start))
        print(length, {folder: f"{median(values):.1f} ms" for folder, values in times.items()}, flush=True)


if __name__ == "__main__":
    main()
