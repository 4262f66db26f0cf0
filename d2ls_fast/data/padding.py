"""The padding fault of the released code, for comparison with its numbers: ``geoseg_compat``.

The release pads ISPRS tiles with a colour before it turns colours into labels. With most versions of its augmentation
library that padding becomes class 0 and counts, in training and in the scores: 21.6 % of a 1919 x 2569 tile. Everywhere
else in this package labels are converted first and padding is never labelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from d2ls_fast.data.crops import Box, Size
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.labels import Labels
from d2ls_fast.data.scenes import Scene, SceneReader, SceneView

T = TypeVar("T", bound=np.generic)


def padded(pair: Pair, tile: int) -> Pair:
    """``pair`` with black pixels of class 0 below and on the right, up to whole squares of ``tile`` pixels."""
    height, width = (-(-length // tile) * tile for length in pair.size)
    return replace(pair, padded_size=(height, width))


class PaddedView:
    """The view of a scene of ``size`` that goes on as black pixels of class 0 below and on the right."""

    def __init__(self, view: SceneView, size: Size) -> None:
        self._view, self._size = view, size

    def read(self, box: Box) -> Scene:
        image, labels, valid = self._view.read(self._inside(box))
        return Scene(
            np.stack([self._fill(band, box) for band in image]),
            self._fill(labels, box),
            None if valid is None else ~self._fill(~valid, box),
        )

    def labels(self, box: Box) -> Labels:
        return self._fill(self._view.labels(self._inside(box)), box)

    def _inside(self, box: Box) -> Box:
        """The part of ``box`` on the scene; its nearest pixel where there is none, since nothing cannot be read."""
        top, left = (min(start, length - 1) for start, length in zip(box[:2], self._size, strict=True))
        height, width = (max(1, count) for count in self._covered(box))
        return top, left, height, width

    def _covered(self, box: Box) -> Size:
        """Rows and columns of ``box`` that the scene covers."""
        rows, columns = (
            max(0, min(count, length - start))
            for start, count, length in zip(box[:2], box[2:], self._size, strict=True)
        )
        return rows, columns

    def _fill(self, values: npt.NDArray[T], box: Box) -> npt.NDArray[T]:
        """``values`` of the part on the scene, and zeros in the rest of ``box``."""
        rows, columns = self._covered(box)
        whole = np.zeros(box[2:], values.dtype)
        whole[:rows, :columns] = values[:rows, :columns]
        return whole


@contextmanager
def view_of(reader: SceneReader, pair: Pair) -> Iterator[SceneView]:
    """The scene of ``pair`` with the padding that it was given."""
    with reader.view(pair) as view:
        yield view if pair.padded_size is None else PaddedView(view, pair.size)
