"""Reading a pair into memory: bands chosen, labels converted, resampled, kept up to a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.labels import MaskReader
from d2ls_fast.data.palettes import IGNORE_INDEX
from d2ls_fast.data.raster import read_image
from d2ls_fast.data.transforms import resample, resample_labels


class Scene(NamedTuple):
    """One image with its labels, in raw units."""

    image: npt.NDArray[Any]
    """[bands, h, w], source dtype."""
    labels: npt.NDArray[np.uint8]
    """[h, w], class index or 255."""
    valid: npt.NDArray[np.bool_] | None
    """[h, w], False where the image has no data; None where it has data everywhere."""

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        return self.image.nbytes + self.labels.nbytes + (0 if self.valid is None else self.valid.nbytes)


class SceneReader:
    """Reads pairs as declared in the settings and keeps those that fit into ``settings.cache_gigabytes``.

    Kept images stay for good: with random access to more than fits, throwing the oldest out would only read more often.
    """

    def __init__(self, settings: DataSettings, bands: Sequence[int]) -> None:
        self._bands = list(bands)
        self._nodata = settings.nodata
        self._masks = MaskReader(settings)
        self._budget = int(settings.cache_gigabytes * 1e9)
        self._kept: dict[str, Scene] = {}

    def read(self, pair: Pair) -> Scene:
        """The scene of ``pair``, of size ``pair.size``; :class:`UserError` where a file is bad."""
        scene = self._kept.get(pair.name)
        if scene is None:
            scene = self._load(pair)
            if scene.nbytes <= self._budget:
                self._budget -= scene.nbytes
                self._kept[pair.name] = scene
        return scene

    def _load(self, pair: Pair) -> Scene:
        image, _, declared = read_image(pair.image, self._bands)
        image = image[:, : pair.height, : pair.width]
        labels = self._masks.read(pair.mask)[: pair.height, : pair.width]
        valid = valid_pixels(image, declared if self._nodata is None else self._nodata)
        if valid is not None:
            labels[~valid] = IGNORE_INDEX
        if pair.size == (pair.height, pair.width):
            return Scene(image, labels, valid)
        small_labels = resample_labels(torch.from_numpy(labels), pair.size).numpy()
        small_valid = None if valid is None else resample_labels(torch.from_numpy(valid), pair.size).numpy()
        return Scene(_resample_image(image, valid, pair.size), small_labels, small_valid)


def valid_pixels(image: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_] | None:
    """Where ``image`` [bands, h, w] has data: finite in every band and not ``nodata`` in all bands. None for
    everywhere."""
    valid = np.ones(image.shape[1:], bool)
    if nodata is not None and np.isfinite(nodata):
        valid &= (image != nodata).any(axis=0)
    if np.issubdtype(image.dtype, np.floating):
        valid &= np.isfinite(image).all(axis=0)
    return None if valid.all() else valid


def _resample_image(
    image: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, size: tuple[int, int]
) -> npt.NDArray[Any]:
    values = image.astype(np.float32)
    if valid is not None and valid.any():
        # Pixels without data take the mean of the others, so that their value does not bleed over the edge.
        values[:, ~valid] = values[:, valid].mean(axis=1, keepdims=True)
    resized = resample(torch.from_numpy(values), size).numpy()
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        resized = np.clip(np.rint(resized), limits.min, limits.max)
    return resized.astype(image.dtype)
