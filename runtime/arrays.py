"""The kinds of numpy array that the packages exchange, by name."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tokens = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]  # numbers of slots
Pcm = npt.NDArray[np.float32]  # samples, full scale being 1
Floats = npt.NDArray[np.floating[Any]]
