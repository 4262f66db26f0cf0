"""Which stride-4 cells of a window are its own and hold data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2ls_fast.inference.windows import Axis

CELL = 4
"""Model pixels along the side of a cell: what the head calls a pixel."""
COARSE = 8
"""Cells along the side of one cell of the backbone's deepest map, of stride 32."""


def counting_cells(known: NDArray[np.bool_], rows: Axis, row: int, columns: Axis, column: int) -> NDArray[np.bool_]:
    """The cells ``[h / 4, w / 4]`` of a window that it owns and that at least one pixel with data falls into.

    Cells beyond the edge of the scene repeat it, and hold data where it does.

    Args:
        known: which of the scene's pixels that the window is made of hold data.
        rows, row, columns, column: the axes and the window's numbers on them.
    """
    with_data = _any(_any(known, rows, row).T, columns, column).T
    owned = np.zeros_like(with_data)
    owned[_owned(rows, row), _owned(columns, column)] = True
    return with_data & owned


def coarse(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells of stride 32 in which at least one of the ``cells`` counts."""
    height, width = (length // COARSE for length in cells.shape)
    return np.logical_or.reduce(cells.reshape(height, COARSE, width, COARSE), axis=(1, 3))


def grid_span(axis: Axis, number: int) -> slice:
    """The cells of window ``number`` among all cells of the axis."""
    return slice(axis.starts[number] // CELL, axis.end(number) // CELL)


def _owned(axis: Axis, number: int) -> slice:
    start = axis.starts[number]
    first, end = axis.owned(number)
    return slice((first - start) // CELL, (end - start) // CELL)


def _any(known: NDArray[np.bool_], axis: Axis, number: int) -> NDArray[np.bool_]:
    """``known`` along its first dimension: whether any of the scene's pixels below each cell is set."""
    start = np.arange(axis.starts[number], axis.end(number), CELL)
    ratio = axis.source / axis.content
    first = np.floor(np.minimum(start, axis.content - 1) * ratio).astype(int)
    end = np.ceil(np.minimum(start + CELL, axis.content) * ratio).astype(int)
    counts = np.concatenate([np.zeros_like(known[:1], np.int64), known.cumsum(axis=0)])
    offset = axis.read(number)[0]
    first, end = (np.clip(each - offset, 0, len(known)) for each in (first, np.maximum(first + 1, end)))
    found: NDArray[np.bool_] = counts[end] > counts[first]
    return found
