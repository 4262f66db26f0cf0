"""A part of a finished map."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NODATA = 255
"""Label of pixels without data."""


class MapRows(NamedTuple):
    """Finished rows of a map: the number of the first one, and what is known of every pixel."""

    start: int
    labels: NDArray[np.uint8]
    """``[r, w]``, 255 where no data."""
    confidence: NDArray[np.float32] | None = None
    """Probability of the label, ``[r, w]``, NaN where no data."""
    probabilities: NDArray[np.uint8] | None = None
    """Of every class, times 255 and rounded, ``[K, r, w]``; 0 where no data."""
