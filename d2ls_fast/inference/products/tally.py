"""What is remembered of a map while its rows go by: class counts, and the map shrunk for the overlay."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.data.pictures import overlay, stretch
from d2ls_fast.inference.products.rows import NODATA, MapRows
from d2ls_fast.inference.render import with_legend
from d2ls_fast.inference.sources import SceneSource, centres
from d2ls_fast.models.checkpoint import ModelCard

OVERLAY_SIDE = 2048


class Tally:
    """Counts the classes of a map ``height x width`` and keeps every ``factor``-th pixel of it."""

    def __init__(self, height: int, width: int, num_classes: int) -> None:
        self.factor = math.ceil(max(height, width) / OVERLAY_SIDE)
        """Pixels of the map per pixel of the overlay, along one side."""
        self._counts = np.zeros(NODATA + 1, dtype=np.int64)
        self._num_classes = num_classes
        self._kept_rows = centres(height, self.factor)
        self._kept_columns = centres(width, self.factor)
        self._kept: list[NDArray[np.uint8]] = []

    def add(self, rows: MapRows) -> None:
        self._counts += np.bincount(rows.labels.reshape(-1), minlength=NODATA + 1)
        first, end = np.searchsorted(self._kept_rows, (rows.start, rows.start + len(rows.labels)))
        self._kept.append(rows.labels[self._kept_rows[first:end] - rows.start][:, self._kept_columns])

    @property
    def labels(self) -> NDArray[np.uint8]:
        return np.concatenate(self._kept)

    @property
    def shares(self) -> list[float]:
        """Each class's share of the pixels with data, 0..1."""
        known = max(1, int(self._counts[:NODATA].sum()))
        return [int(count) / known for count in self._counts[: self._num_classes]]

    @property
    def missing(self) -> float:
        """Share of all pixels that have no data."""
        return float(self._counts[NODATA] / self._counts.sum())


def overlay_picture(source: SceneSource, tally: Tally, card: ModelCard) -> Image.Image:
    """The scene tinted with the classes' colours and a legend, the scene at most 2048 pixels a side."""
    image, known = source.thumbnail(tally.factor)
    notes = [f"{source.height} x {source.width} pixels"]
    if tally.factor > 1:
        notes.append(f"shown at 1:{tally.factor}")
    if tally.missing > 0:
        notes.append(f"{tally.missing:.1%} without data")
    picture = overlay(stretch(image, known), tally.labels, card.palette)
    return with_legend(picture, card.classes, card.palette, tally.shares, notes)
