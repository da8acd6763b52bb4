"""Names for the numpy array types that the packages exchange. Used by all packages."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tokens = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]  # numbers of slots
Pcm = npt.NDArray[np.float32]  # samples; full scale is 1
Floats = npt.NDArray[np.floating[Any]]
