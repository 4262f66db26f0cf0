"""Finished rows of a map, as they are handed on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NODATA = 255


class MapRows(NamedTuple):
    """Finished rows of a map of K classes, ``w`` pixels wide; they come in order from the top.

    Attributes:
        start: the first row's number.
        labels: uint8 ``[rows, w]``, 255 where the scene has no data.
        confidence: the label's probability, float32 ``[rows, w]``, NaN where no data; ``None`` where not asked for.
        probabilities: 255 times each class's probability, rounded, uint8 ``[K, rows, w]``, 0 where no data; ``None``
            where not asked for.
    """

    start: int
    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    probabilities: NDArray[np.uint8] | None = None
