"""One pass over one scene: window by window into open rows of blended probabilities, and out as finished labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2ls_fast.data.resample import AxisResampler
from d2ls_fast.inference.sources import Source
from d2ls_fast.inference.windows import OpenRows, blend_weights, window_starts

NODATA = 255


class LabelRows(NamedTuple):
    """Finished rows of a map: the first row's number, labels ``[rows, w]`` uint8 and confidence float32 or ``None``."""

    start: int
    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None


class Mosaic:
    """The open part of one scene's map.

    The model works on its own grid, the source's times ``scale``. ``add`` puts the windows of one row of windows in;
    ``finished`` says how many source rows no later window can change; ``labels`` takes such rows out, once, in order.

    Args:
        source: the scene.
        normalise: raw values ``[bands, h, w]`` to the model's input.
        classify: a batch of windows ``[B, bands, h, w]`` to class probabilities float32 ``[B, K, h, w]``.
        num_classes: K.
        scale: model pixels per source pixel.
        window, overlap: in model pixels.
        device: where probabilities are accumulated.
    """

    def __init__(
        self,
        source: Source,
        normalise: Callable[[Tensor], Tensor],
        classify: Callable[[Tensor], Tensor],
        num_classes: int,
        scale: float,
        window: int,
        overlap: int,
        device: torch.device,
    ) -> None:
        self._source, self._normalise, self._classify, self._device = source, normalise, classify, device
        height, width = max(1, round(source.height * scale)), max(1, round(source.width * scale))
        self._height, self._width = min(window, height), min(window, width)
        self.tops = window_starts(height, window, overlap)
        self.lefts = window_starts(width, window, overlap)
        self._weight_rows = blend_weights(self.tops, window, height).to(device)
        self._weight_columns = blend_weights(self.lefts, window, width).to(device)
        self._into_rows = AxisResampler(source.height, height)
        self._into_columns = AxisResampler(source.width, width)
        self._back_rows = AxisResampler(height, source.height)
        self._back_columns = AxisResampler(width, source.width)
        self._probabilities = OpenRows(num_classes, width, torch.float32, device)
        self._known = OpenRows(1, source.width, torch.bool)

    @torch.inference_mode()
    def add(self, row: int, columns: range) -> None:
        """Classify and blend the windows ``columns`` of row of windows ``row``, in one model call."""
        windows = {column: self._window(row, column) for column in columns}
        images = {column: image for column, image in windows.items() if image is not None}
        if not images:
            return
        top = self.tops[row]
        rows = self._probabilities.view(top, top + self._height)
        for column, probabilities in zip(images, self._classify(torch.stack(list(images.values()))), strict=True):
            left = self.lefts[column]
            weight = self._weight_rows[row][:, None] * self._weight_columns[column]
            rows[:, :, left : left + self._width] += probabilities * weight

    def _window(self, row: int, column: int) -> Tensor | None:
        """The model's input for one window, ``[bands, h, w]``; ``None`` where the source has no data at all."""
        top, left = self.tops[row], self.lefts[column]
        bottom, right = top + self._height, left + self._width
        rows, columns = self._into_rows.span(top, bottom), self._into_columns.span(left, right)
        values, known = self._source.read(rows, columns)
        has_data = torch.from_numpy(known)
        self._known.view(*rows)[0, :, columns[0] : columns[1]] = has_data
        if not known.any():
            return None
        image = self._normalise(torch.from_numpy(values.astype(np.float32)).to(self._device))
        # A missing pixel becomes 0, the mean of the training images: neutral to the network and to resampling.
        image = image.where(has_data.to(self._device), 0.0)
        return self._into_columns.apply(self._into_rows.apply(image, 1, top, bottom), 2, left, right)

    def finished(self, row: int) -> int:
        """How many source rows are final once the windows of rows up to ``row`` are in."""
        last = row + 1 == len(self.tops)
        return self._source.height if last else self._back_rows.ready(self.tops[row + 1])

    @torch.inference_mode()
    def labels(self, start: int, stop: int, with_confidence: bool) -> LabelRows:
        """Source rows ``start`` to ``stop``; rows before ``stop`` are forgotten."""
        first, end = self._back_rows.span(start, stop)
        part = self._back_rows.apply(self._probabilities.view(first, end), 1, start, stop)
        best, labels = self._back_columns.apply(part, 2, 0, self._source.width).max(dim=0)
        missing = ~self._known.view(start, stop)[0]
        result = labels.to("cpu", torch.uint8).masked_fill(missing, NODATA).numpy()
        confidence = best.cpu().masked_fill(missing, float("nan")).numpy() if with_confidence else None
        self._known.forget(stop)
        if stop < self._source.height:
            self._probabilities.forget(self._back_rows.span(stop, stop + 1)[0])
        return LabelRows(start, result, confidence)
