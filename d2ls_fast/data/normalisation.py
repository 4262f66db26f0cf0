"""Mean and standard deviation of each band, in raw pixel units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.scenes import SceneReader
from d2ls_fast.errors import UserError

IMAGENET_MEAN = [255 * value for value in (0.485, 0.456, 0.406)]
IMAGENET_STD = [255 * value for value in (0.229, 0.224, 0.225)]

MEASURED_IMAGES = 200
"""Images that ``normalisation: dataset`` reads at most, evenly spaced over the training images."""


STRIP = 512
"""Rows that are measured at once: what bounds the memory for large images."""


def resolve(
    settings: DataSettings, pairs: Sequence[Pair], bands: Sequence[int], reader: SceneReader
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band as the settings ask for, in the order of ``bands``.

    Raises:
        UserError: the wrong number of values, or an 8-bit normalisation for imagery that is not.
    """
    if settings.mean is not None and settings.std is not None:
        if len(settings.mean) != len(bands):
            raise UserError(f"data.mean has {len(settings.mean)} values for {len(bands)} bands; give one per band")
        return list(settings.mean), list(settings.std)
    if settings.normalisation in ("imagenet", "half"):
        for pair in pairs:
            if pair.header.dtype != "uint8":
                raise UserError(
                    f"{pair.image}: pixels are {pair.header.dtype}, data.normalisation: {settings.normalisation} is "
                    "for uint8; use normalisation: dataset, or give mean and std"
                )
        if settings.normalisation == "half":
            return [127.0] * len(bands), [128.0] * len(bands)
        if len(bands) != 3:
            raise UserError(
                f"data.normalisation: imagenet is for 3 bands, not {len(bands)}; use normalisation: dataset"
            )
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    return measure(pairs, reader)


def measure(pairs: Sequence[Pair], reader: SceneReader) -> tuple[list[float], list[float]]:
    """Mean and standard deviation over all pixels with data of (at most :data:`MEASURED_IMAGES`) images, in float64."""
    step = max(1, -(-len(pairs) // MEASURED_IMAGES))
    count = 0
    total = square = np.zeros(1)
    for pair in pairs[::step]:
        height, width = pair.size
        with reader.view(pair) as view:
            for top in range(0, height, STRIP):
                part = view.read((top, 0, min(STRIP, height - top), width))
                pixels = part.image.reshape(len(part.image), -1).astype(np.float64)
                if part.valid is not None:
                    pixels = pixels[:, part.valid.ravel()]
                count += pixels.shape[1]
                total = total + pixels.sum(axis=1)
                square = square + (pixels**2).sum(axis=1)
    if count == 0:
        raise UserError(f"{pairs[0].image}: no training image has a pixel with data; check data.nodata")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
    std[std < 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0  # a constant band carries nothing: only centre it
    return mean.tolist(), std.tolist()


def normalise(
    image: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """``image`` [bands, h, w] in raw units -> float32 tensor of mean 0 and deviation 1; 0 where there is no data."""
    centre = np.asarray(mean, np.float32)[:, None, None]
    spread = np.asarray(std, np.float32)[:, None, None]
    values = (image.astype(np.float32) - centre) / spread
    if valid is not None:
        values[:, ~valid] = 0.0
    return torch.from_numpy(values)
