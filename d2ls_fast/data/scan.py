"""What one image and its mask hold, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.labels import Labels, MaskReader, UnknownLabels
from d2ls_fast.data.palettes import IGNORE_INDEX
from d2ls_fast.data.pictures import overlay, rgb_bands, stretch, thin, thumbnail
from d2ls_fast.data.raster import read_image
from d2ls_fast.data.scenes import valid_pixels
from d2ls_fast.errors import UserError

PICTURE_SIDE = 180
_CHUNK = 2**22  # pixels summed at a time, in float64


@dataclass(frozen=True)
class BandCounts:
    """Statistics of a band's pixels with data, in raw units; they can be added."""

    minimum: float = math.inf
    maximum: float = -math.inf
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: BandCounts) -> BandCounts:
        return BandCounts(
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
        )

    @property
    def mean(self) -> float:
        """NaN without a pixel with data."""
        return self.total / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Standard deviation; NaN without a pixel with data."""
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0)) if self.count else math.nan


@dataclass
class Scan:
    """One pair, read in full."""

    pair: Pair
    size: tuple[int, int]
    """Height and width that image and mask share."""
    bands: list[BandCounts] = field(default_factory=list)
    no_data: int = 0
    class_pixels: list[int] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    """Pixels of every undeclared value or colour."""
    faults: list[UserError] = field(default_factory=list)
    picture: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None = None
    """The image, and the labels laid over it: RGB [h, w, 3]."""

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def readable(self) -> bool:
        """Whether both files could be read, unknown labels aside."""
        return bool(self.bands and self.class_pixels)


class PairScanner:
    """Reads pairs as training does.

    Args:
        settings: the ``data:`` group.
        bands: source bands in model order.
    """

    def __init__(self, settings: DataSettings, bands: Sequence[int]) -> None:
        self._bands, self._nodata = list(bands), settings.nodata
        self._masks, self._palette = MaskReader(settings), settings.colours

    def scan(self, pair: Pair, with_picture: bool = False) -> Scan:
        """Read both files of ``pair``; what is wrong with them is in the result, not raised."""
        scan = Scan(pair, (pair.height, pair.width))
        part = np.s_[..., : pair.height, : pair.width]
        image = valid = labels = None
        try:
            values, _, declared = read_image(pair.image, pair.bands_in_file(self._bands))
            image = values[part]
            valid = valid_pixels(image, declared if self._nodata is None else self._nodata)
            scan.bands = [_count(band, valid) for band in image]
            scan.no_data = 0 if valid is None else int((~valid).sum())
        except UserError as error:
            scan.faults.append(error)
        try:
            labels = self._masks.read(pair.mask)[part]
        except UnknownLabels as error:
            labels = error.labels[part]
            scan.unknown = error.counts
            scan.faults.append(error)
        except UserError as error:
            scan.faults.append(error)
        if labels is not None:
            if valid is not None:
                labels = np.where(valid, labels, np.uint8(IGNORE_INDEX))
            scan.class_pixels = np.bincount(labels.ravel(), minlength=len(self._palette))[: len(self._palette)].tolist()
        if with_picture and image is not None and labels is not None:
            scan.picture = self._draw(image, valid, labels)
        return scan

    def _draw(
        self, image: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, labels: Labels
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        side = 4 * PICTURE_SIDE
        known = None if valid is None else thin(valid, side)
        rgb = thumbnail(stretch(thin(rgb_bands(image), side), known), PICTURE_SIDE)
        return rgb, overlay(rgb, thumbnail(thin(labels, side), PICTURE_SIDE), self._palette, 0.6)


def _count(band: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None) -> BandCounts:
    rows = max(1, _CHUNK // band.shape[1])
    result = BandCounts()
    for top in range(0, band.shape[0], rows):
        values = band[top : top + rows]
        values = values.ravel() if valid is None else values[valid[top : top + rows]]
        if values.size:
            exact = values.astype(np.float64)
            result += BandCounts(
                float(values.min()), float(values.max()), values.size, float(exact.sum()), float(exact @ exact)
            )
    return result
