"""Imagery of any bands and type as 8-bit RGB, small enough to look at, and labels laid over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.data.palettes import colourise

SAMPLE = 1024  # pixels a side that are looked at for a picture's brightness
STRIP = 256  # rows of a picture that are mixed at once


def rgb_bands(image: NDArray[Any]) -> NDArray[Any]:
    """The first three bands of ``image`` ``[bands, h, w]``, or the first one three times: ``[3, h, w]``."""
    return image[:3] if len(image) >= 3 else image[[0, 0, 0]]


def thin(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Every n-th pixel of ``[..., h, w]``, with the least n that leaves at most ``side`` pixels a side."""
    step = max(1, math.ceil(max(array.shape[-2:]) / side))
    top, left = (min(step // 2, length - 1) for length in array.shape[-2:])
    return array[..., top::step, left::step]


def stretch(
    image: NDArray[Any], known: NDArray[np.bool_] | None = None, percentiles: tuple[float, float] = (1.0, 99.0)
) -> NDArray[np.uint8]:
    """``[3, h, w]`` of any real type as RGB uint8 ``[h, w, 3]``.

    The two percentiles of all bands' values where ``known`` (and finite) become 0 and 255, the same for every band so
    that colours keep their balance; of a large image every n-th pixel is looked at. Pixels that are not known become
    black.
    """
    usable = np.isfinite(image[0]) & np.isfinite(image[1]) & np.isfinite(image[2])
    if known is not None:
        usable &= known
    result = np.zeros((*usable.shape, 3), dtype=np.uint8)
    if not usable.any():
        return result
    seen = thin(image, SAMPLE)[:, thin(usable, SAMPLE)].astype(np.float32)
    low, high = np.percentile(seen if seen.size else image[:, usable].astype(np.float32), percentiles)
    for channel, band in enumerate(image):  # one at a time: a large picture in float32 is a multiple of itself
        scaled = (band.astype(np.float32) - np.float32(low)) * np.float32(255 / max(float(high - low), 1e-6))
        result[usable, channel] = scaled[usable].clip(0, 255).round()
    return result


def overlay(
    rgb: NDArray[np.uint8], labels: NDArray[np.uint8], palette: Sequence[Sequence[int]], opacity: float = 0.45
) -> NDArray[np.uint8]:
    """``rgb`` ``[h, w, 3]`` tinted with the classes' colours; labels outside the palette leave it as it is."""
    tinted = rgb.copy()
    for top in range(0, len(rgb), STRIP):
        place = slice(top, top + STRIP)
        known = labels[place] < len(palette)
        mixed = (1 - opacity) * rgb[place] + opacity * colourise(labels[place], palette)
        tinted[place][known] = mixed[known].round()
    return tinted


def thumbnail(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """``picture`` with at most ``side`` pixels a side: RGB ``[h, w, 3]`` averaged, labels ``[h, w]`` nearest pixels."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    method = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size, method))


def wrap(widths: Sequence[float], available: float) -> list[tuple[int, int]]:
    """Left edge and line number of entries of these widths, set one after the other on lines ``available`` wide."""
    places: list[tuple[int, int]] = []
    x, line = 0.0, 0
    for width in widths:
        if x > 0 and x + width > available:
            x, line = 0.0, line + 1
        places.append((int(x), line))
        x += width
    return places
