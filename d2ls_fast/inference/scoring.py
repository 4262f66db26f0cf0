"""From a scene's windows to their class probabilities: read ahead, batched through the model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from d2ls_fast.inference.ahead import ahead
from d2ls_fast.inference.mosaic import Window
from d2ls_fast.inference.sources import Source
from d2ls_fast.inference.windows import Axis

READERS = 2


class WindowImage(NamedTuple):
    """The model's input for one window, float32 ``[bands, h, w]`` on the CPU (``None``: no data), and what is known."""

    column: int
    image: Tensor | None
    known: NDArray[np.bool_]


class WindowReader:
    """Reads the windows of a scene as the model takes them.

    Args:
        source: the scene.
        rows, columns: its axes.
        mean, std: per band, in raw units.
    """

    def __init__(self, source: Source, rows: Axis, columns: Axis, mean: Sequence[float], std: Sequence[float]) -> None:
        self._source, self._rows, self._columns = source, rows, columns
        self._mean, self._std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (mean, std))

    def read(self, part: range, depth: int) -> Generator[WindowImage, None, None]:
        """The windows of the rows ``part``, each row from left to right; ``depth`` of them are read ahead."""
        places = list(product(part, range(len(self._columns))))
        with closing(ahead((partial(self._pixels, *place) for place in places), READERS, depth)) as found:
            for (row, column), (pixels, known) in zip(places, found, strict=True):
                image = None if pixels is None else self._as_the_model_sees(row, column, torch.from_numpy(pixels))
                yield WindowImage(column, image, known)

    def _pixels(self, row: int, column: int) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """Normalised pixels as they are in the scene, and what is known.

        Without PyTorch: in every thread that calls it, it keeps threads of its own, which the model would then miss.
        """
        values, known = self._source.read(self._rows.read(row), self._columns.read(column))
        if not known.any():
            return None, known
        pixels = (values.astype(np.float32) - self._mean) / self._std
        # A missing pixel becomes 0, the mean of the training images: neutral to the network and to resampling.
        return np.where(known, pixels, np.float32(0)), known

    @torch.inference_mode()
    def _as_the_model_sees(self, row: int, column: int, image: Tensor) -> Tensor:
        """Resampled to the model's grid, its edge repeated where the scene ends before the window."""
        rows, columns = self._rows, self._columns
        image = columns.into.apply(rows.into.apply(image, 1, *rows.inside(row)), 2, *columns.inside(column))
        below, right = rows.window - image.shape[1], columns.window - image.shape[2]
        return pad(image, (0, right, 0, below), mode="replicate") if below or right else image


Classify = Callable[[Sequence[WindowImage]], Iterable[Tensor]]
"""Windows that hold data -> their probabilities, float32 ``[K, h, w]`` each."""


def scored(windows: Iterator[WindowImage], classify: Classify, batch: int) -> Iterator[Window]:
    """The ``windows`` in their order with class probabilities, ``batch`` of those that hold data per model call."""
    for group in batches(windows, batch):
        with_data = [window for window in group if window.image is not None]
        probabilities = iter(classify(with_data) if with_data else ())
        for window in group:
            yield Window(window.column, None if window.image is None else next(probabilities), window.known)


def batches(windows: Iterable[WindowImage], batch: int) -> Iterator[list[WindowImage]]:
    """``windows`` in runs that end with the ``batch``-th window that holds data; the last may hold fewer."""
    waiting: list[WindowImage] = []
    for window in windows:
        waiting.append(window)
        if sum(each.image is not None for each in waiting) == batch:
            yield waiting
            waiting = []
    yield waiting


def stacked(windows: Sequence[WindowImage]) -> Tensor:
    """The images of ``windows`` that all hold data, ``[B, bands, h, w]``."""
    return torch.stack([window.image for window in windows if window.image is not None])
