"""Parts of a scene that is resampled as it is read: which source pixels they need, and how they are made of them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rasterio.windows import Window

from d2ls_fast.data.crops import Box, Size
from d2ls_fast.data.resample import axis_resampler, nearest

T = TypeVar("T", bound=np.generic)


def as_window(box: Box) -> Window:
    """A box of source pixels as rasterio takes it."""
    return Window(box[1], box[0], box[3], box[2])


class Grid:
    """A scene of ``source`` pixels seen at ``target`` pixels: any box of it has the values it has in the whole.

    Args:
        source: height and width of the files.
        target: height and width after resampling.
    """

    def __init__(self, source: Size, target: Size) -> None:
        self._axes = list(zip(source, target, strict=True))
        self._same = source == target

    def image_source(self, box: Box) -> Box:
        """The box of source pixels that the image in ``box`` is made of."""
        if self._same:
            return box
        spans = [
            axis_resampler(*lengths).span(start, start + count)
            for lengths, start, count in zip(self._axes, box[:2], box[2:], strict=True)
        ]
        return spans[0][0], spans[1][0], spans[0][1] - spans[0][0], spans[1][1] - spans[1][0]

    def label_source(self, box: Box) -> Box:
        """The box of source pixels that the labels in ``box`` are picked from."""
        if self._same:
            return box
        rows, columns = self._nearest(box)
        return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1

    def pick(self, values: npt.NDArray[T], around: Box, box: Box) -> npt.NDArray[T]:
        """``values`` [h, w] of the source pixels ``around``, taken at the nearest centres for the pixels of ``box``."""
        if self._same:
            return values
        rows, columns = self._nearest(box)
        return values[np.ix_(rows - around[0], columns - around[1])]

    def resample_image(
        self, image: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, box: Box
    ) -> npt.NDArray[Any]:
        """``image`` [bands, h, w] of the source pixels ``image_source(box)`` -> [bands, *box size], of the same type.

        Bilinear, antialiased where it shrinks; only pixels with data count, so that others do not bleed over the edge.
        """
        if self._same:
            return image
        values = image.astype(np.float32)
        if valid is None:
            resized = self._resample(values, box)
        else:
            values[:, ~valid] = 0.0
            weight = self._resample(valid[None].astype(np.float32), box)
            resized = self._resample(values, box) / np.maximum(weight, np.float32(1e-6))
        if np.issubdtype(image.dtype, np.integer):
            limits = np.iinfo(image.dtype)
            resized = np.clip(np.rint(resized), limits.min, limits.max)
        return resized.astype(image.dtype)

    def _resample(self, values: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
        result = torch.from_numpy(values)
        for dim, lengths in enumerate(self._axes):
            result = axis_resampler(*lengths).apply(result, dim + 1, box[dim], box[dim] + box[dim + 2])
        return result.numpy()

    def _nearest(self, box: Box) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows, columns = (
            nearest(*lengths, start, start + count).numpy()
            for lengths, start, count in zip(self._axes, box[:2], box[2:], strict=True)
        )
        return rows, columns
