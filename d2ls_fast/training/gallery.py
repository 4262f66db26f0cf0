"""The tiles that a model does worst and best on, small enough to be shown."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from d2ls_fast.data.palettes import IGNORE_INDEX
from d2ls_fast.data.pictures import overlay, rgb_bands, stretch, thin, thumbnail
from d2ls_fast.training.metrics import ConfusionMatrix, scores_from_matrix

SIDE = 320
"""Pixels of a picture's longer side at most."""
OPACITY = 0.7
"""Of the labels over the image: enough for the colours to be told by the legend."""
WRONG, UNLABELLED = (235, 30, 75), (112, 116, 128)
"""Colours of the picture of the errors."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class Tile:
    """One item of a split with its prediction; tiles are ordered by their scores."""

    mean_iou: float
    accuracy: float
    name: str
    rgb: Picture = field(compare=False)
    """[h, w, 3]"""
    truth: Picture = field(compare=False)
    """[h, w], class index or 255."""
    predicted: Picture = field(compare=False)

    def pictures(self, palette: Sequence[Sequence[int]]) -> dict[str, Picture]:
        """Image, truth and prediction laid over it, and the errors: RGB pictures by their headings."""
        return {
            "image": self.rgb,
            "truth": overlay(self.rgb, self.truth, palette, OPACITY),
            "prediction": overlay(self.rgb, self.predicted, palette, OPACITY),
            "errors": self._errors(),
        }

    def _errors(self) -> Picture:
        grey = self.rgb.mean(axis=-1, keepdims=True) * 0.7
        picture = np.broadcast_to(grey, self.rgb.shape).astype(np.uint8)
        picture[self.truth != self.predicted] = WRONG
        picture[self.truth == IGNORE_INDEX] = UNLABELLED
        return picture


class Gallery:
    """Keeps the ``count`` worst and the ``count`` best of the tiles it is shown, by the tile's own mean IoU.

    Tiles without a labelled pixel of a class that counts are left out.

    Args:
        num_classes: K.
        exclude: class indices that the mean IoU leaves out.
        mean, std: of the normalisation, per band in raw units: undone, so that colours keep their balance.
        count: tiles of each kind.
    """

    def __init__(
        self, num_classes: int, exclude: Sequence[int], mean: Sequence[float], std: Sequence[float], count: int
    ) -> None:
        self._num_classes, self._exclude, self._count = num_classes, list(exclude), count
        self._mean, self._std = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
        self._worst: list[Tile] = []
        self._best: list[Tile] = []
        self._seen = 0

    def add(self, image: Tensor, label: Tensor, predicted: Tensor, name: str) -> None:
        """Show a tile.

        Args:
            image: float [bands, h, w], normalised.
            label: [h, w], class index or 255.
            predicted: [h, w], class index.
            name: of the tile.
        """
        matrix = ConfusionMatrix(self._num_classes, exclude=self._exclude)
        matrix.update(predicted, label)
        scores = scores_from_matrix(matrix.matrix.tolist(), self._exclude)  # this tile's: not summed over processes
        key = (scores.mean_iou, scores.overall_accuracy)
        if any(map(math.isnan, key)):
            return
        self._seen += 1
        full = len(self._worst) == self._count
        if full and key >= (self._worst[-1].mean_iou, self._worst[-1].accuracy) and key <= self._least_best():
            return
        raw = thin(image.cpu().numpy(), 4 * SIDE) * self._std + self._mean
        rgb = thumbnail(stretch(rgb_bands(raw)), SIDE)
        truth, guess = (thumbnail(part.cpu().numpy().astype(np.uint8), SIDE) for part in (label, predicted))
        tile = Tile(*key, name, rgb, truth, guess)
        bisect.insort(self._worst, tile)
        bisect.insort(self._best, tile)
        del self._worst[self._count :]
        del self._best[: -self._count]

    @property
    def worst(self) -> list[Tile]:
        """The worst first; at most half of all tiles."""
        return self._worst[: min(self._count, math.ceil(self._seen / 2))]

    @property
    def best(self) -> list[Tile]:
        """The best first; none of the worst is among them."""
        return self._best[::-1][: min(self._count, self._seen // 2)]

    def _least_best(self) -> tuple[float, float]:
        return self._best[0].mean_iou, self._best[0].accuracy
