"""Labels for an image of any size: overlapping windows, blended probabilities, bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.inference.mosaic import NODATA, LabelRows, Mosaic
from d2ls_fast.inference.sources import ArraySource, Source, has_data
from d2ls_fast.inference.tta import TTA
from d2ls_fast.inference.windows import window_starts
from d2ls_fast.models.checkpoint import ModelCard

SMALLEST = 32  # the model's deepest map has stride 32
STRIP = 64  # source rows labelled at once: bounds the memory of upsampled probabilities

Progress = Callable[[int, int], None]


class Predictor:
    """Applies a trained model to imagery in raw units.

    The image is normalised by the card's mean and standard deviation, resampled by the card's scale, cut into windows
    that overlap, and the windows' class probabilities are blended in float32 and brought back to the image's own grid,
    where the most probable class is taken. Pixels without data get label 255 and confidence NaN.

    Args:
        model: gives logits ``[B, K, h, w]`` for images ``[B, bands, h, w]``; moved to ``device`` and set to eval mode.
        card: how the model's input is made and what its classes are.
        device: where the model runs.
        dtype: ``torch.float32``, or ``torch.bfloat16`` / ``torch.float16`` for mixed precision.
        window: side of a window in model pixels, at least 32.
        overlap: pixels that neighbouring windows share at least.
        batch: windows per model call, and views of windows under test-time augmentation.
        tta: a preset of :data:`~d2ls_fast.inference.tta.PRESETS`, applied to every window; its scales are on top of the
            card's.
        tta_merge: the mean is taken of ``logits`` or of ``probabilities``.

    Raises:
        UserError: an option outside its range, an unknown ``tta`` or ``tta_merge``, or more than 255 classes.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        window: int = 512,
        overlap: int = 64,
        batch: int = 4,
        tta: str = "none",
        tta_merge: str = "logits",
    ) -> None:
        if window < SMALLEST:
            raise UserError(f"window {window} must be at least {SMALLEST} pixels")
        if batch < 1:
            raise UserError(f"batch {batch} must be at least 1")
        if len(card.classes) > NODATA:
            raise UserError(f"the model has {len(card.classes)} classes; label rasters hold at most {NODATA}")
        window_starts(1, window, overlap)
        self.device = torch.device(device)
        self.model, self.card, self.dtype = model.to(self.device).eval(), card, dtype
        self.window, self.overlap, self.batch = window, overlap, batch
        self.tta = TTA(tta, tta_merge, batch)
        self._mean = torch.tensor(card.mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self._std = torch.tensor(card.std, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    @overload
    def predict(
        self, image: NDArray[Any], nodata: float | None = ..., *, progress: Progress | None = ...
    ) -> NDArray[np.uint8]: ...

    @overload
    def predict(
        self,
        image: NDArray[Any],
        nodata: float | None = ...,
        *,
        return_confidence: Literal[True],
        progress: Progress | None = ...,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...

    def predict(
        self,
        image: NDArray[Any],
        nodata: float | None = None,
        *,
        return_confidence: bool = False,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels ``[h, w]`` uint8 of ``image`` ``[bands, h, w]`` (any real type, raw units, bands in model order).

        With ``return_confidence`` also the probability of the label, float32 ``[h, w]``. ``progress(done, total)`` is
        called as windows are finished.

        Raises:
            UserError: the image is not three-dimensional or has another number of bands than the model.
        """
        bands = len(self.card.mean)
        if image.ndim != 3 or image.shape[0] != bands or 0 in image.shape or image.dtype.kind not in "buif":
            raise UserError(
                f"image of shape {image.shape} and type {image.dtype}: "
                f"the model takes real numbers [{bands}, height, width]"
            )
        source = ArraySource(image, has_data(image, [nodata] * bands))
        labels = np.empty((source.height, source.width), dtype=np.uint8)
        confidence = np.empty(labels.shape if return_confidence else (0, 0), dtype=np.float32)
        for rows in self.rows(source, return_confidence, progress):
            place = slice(rows.start, rows.start + len(rows.labels))
            labels[place] = rows.labels
            if rows.confidence is not None:
                confidence[place] = rows.confidence
        return (labels, confidence) if return_confidence else labels

    def rows(
        self, source: Source, return_confidence: bool = False, progress: Progress | None = None
    ) -> Iterator[LabelRows]:
        """The map of ``source`` from top to bottom, strip by strip.

        Only the rows that later windows can still change are in memory: about ``classes x window x width`` floats.
        """
        mosaic = Mosaic(
            source,
            self._normalise,
            self._probabilities,
            len(self.card.classes),
            self.card.scale,
            self.window,
            self.overlap,
            self.device,
        )
        across = len(mosaic.lefts)
        total = across * len(mosaic.tops)
        start = 0
        for row in range(len(mosaic.tops)):
            for first in range(0, across, self.batch):
                columns = range(first, min(first + self.batch, across))
                mosaic.add(row, columns)
                if progress is not None:
                    progress(row * across + columns.stop, total)
            finished = mosaic.finished(row)
            while start < finished:
                stop = min(start + STRIP, finished)
                yield mosaic.labels(start, stop, return_confidence)
                start = stop

    def _normalise(self, values: Tensor) -> Tensor:
        return (values - self._mean) / self._std

    def _probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities float32 ``[B, K, h, w]`` of normalised windows."""
        mixed = self.dtype != torch.float32
        try:
            with torch.autocast(self.device.type, dtype=self.dtype if mixed else None, enabled=mixed):
                return self.tta(self.model, images).float().softmax(dim=1)
        except torch.OutOfMemoryError:
            raise UserError(
                f"the device ran out of memory with {len(images)} windows of {self.window} pixels; "
                "give a smaller --batch or --window"
            ) from None
