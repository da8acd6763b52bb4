"""Array types of the validation."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Tokens = npt.NDArray[np.int64]
