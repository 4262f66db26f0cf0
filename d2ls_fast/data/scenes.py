"""Reading pairs: bands chosen, labels converted, resampled; whole into memory up to a budget, else by windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from rasterio import DatasetReader

from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.crops import Box
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.labels import Labels, MaskReader
from d2ls_fast.data.palettes import IGNORE_INDEX
from d2ls_fast.data.raster import WINDOWED, image_pixels, mask_values, open_raster, readable
from d2ls_fast.data.windows import Grid, as_window


class Scene(NamedTuple):
    """One image with its labels, in raw units, whole or a part of it."""

    image: npt.NDArray[Any]
    """[bands, h, w], source dtype."""
    labels: Labels
    """[h, w], class index or 255."""
    valid: npt.NDArray[np.bool_] | None
    """[h, w], False where the image has no data; None where it has data everywhere."""

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        return self.image.nbytes + self.labels.nbytes + (0 if self.valid is None else self.valid.nbytes)


class SceneView(Protocol):
    """Access to the parts of a scene; a box is top, left, height and width in pixels of ``pair.size``."""

    def read(self, box: Box) -> Scene:
        """Image and labels in a box."""
        ...

    def labels(self, box: Box) -> Labels:
        """The labels alone, the same as those of :meth:`read`."""
        ...


class SceneInMemory:
    """The view of a scene that was read whole."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def read(self, box: Box) -> Scene:
        top, left, height, width = box
        part = np.s_[top : top + height, left : left + width]
        valid = None if self._scene.valid is None else self._scene.valid[part]
        return Scene(self._scene.image[(slice(None), *part)], self._scene.labels[part], valid)

    def labels(self, box: Box) -> Labels:
        top, left, height, width = box
        return self._scene.labels[top : top + height, left : left + width]


class SceneOnDisk:
    """The view of a scene of which only the boxes asked for are read.

    Args:
        pair: the files' names and sizes.
        image: the open image.
        mask: the open mask, or its labels in source pixels.
        bands: source bands in model order.
        nodata: value of pixels without data where the file does not declare it.
        masks: turns stored values into labels.
    """

    def __init__(
        self,
        pair: Pair,
        image: DatasetReader,
        mask: DatasetReader | Labels,
        bands: Sequence[int],
        nodata: float | None,
        masks: MaskReader,
    ) -> None:
        self._pair, self._image, self._mask = pair, image, mask
        self._bands, self._nodata, self._masks = pair.bands_in_file(bands), nodata, masks
        self._grid = Grid((pair.height, pair.width), pair.size)

    def read(self, box: Box) -> Scene:
        image, valid, around = self._read_image(box)
        labels = self._read_labels(box)
        if valid is not None:
            kept = self._grid.pick(valid, around, box)
            labels = np.where(kept, labels, np.uint8(IGNORE_INDEX))
            return Scene(self._grid.resample_image(image, valid, box), labels, None if kept.all() else kept)
        return Scene(self._grid.resample_image(image, None, box), labels, None)

    def labels(self, box: Box) -> Labels:
        labels = self._read_labels(box)
        may_lack_data = self._nodata is not None or self._pair.header.nodata is not None
        if may_lack_data or np.dtype(self._pair.header.dtype).kind == "f":
            _, valid, around = self._read_image(box)
            if valid is not None:
                labels = np.where(self._grid.pick(valid, around, box), labels, np.uint8(IGNORE_INDEX))
        return labels

    def _read_image(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None, Box]:
        """Source pixels of the image in ``box``, where they have data, and which they are."""
        around = self._grid.image_source(box)
        with readable(self._pair.image):
            image, declared = image_pixels(self._image, self._bands, as_window(around))
        return image, valid_pixels(image, declared if self._nodata is None else self._nodata), around

    def _read_labels(self, box: Box) -> Labels:
        around = self._grid.label_source(box)
        if isinstance(self._mask, DatasetReader):
            with readable(self._pair.mask):
                stored = mask_values(self._mask, as_window(around))
            labels = self._masks.labels(stored, self._pair.mask)
        else:
            top, left, height, width = around
            labels = self._mask[top : top + height, left : left + width]
        return self._grid.pick(labels, around, box)


class SceneReader:
    """Reads pairs as declared in the settings and keeps those that fit into ``settings.cache_gigabytes``.

    Kept images stay for good: with random access to more than fits, throwing the oldest out would only read more often.
    What does not fit is read by windows where the format allows it; else it is decoded whole, and only the last one is
    held.
    """

    def __init__(self, settings: DataSettings, bands: Sequence[int]) -> None:
        self._bands = list(bands)
        self._nodata = settings.nodata
        self._masks = MaskReader(settings)
        self._budget = int(settings.cache_gigabytes * 1e9)
        self._kept: dict[tuple[Path, Path], Scene] = {}
        self._kept_masks: dict[Path, Labels] = {}
        self._last: tuple[tuple[Path, Path], Scene] | None = None
        self._last_mask: tuple[Path, Labels] | None = None

    @contextmanager
    def view(self, pair: Pair) -> Iterator[SceneView]:
        """The scene of ``pair``, to be read by boxes; :class:`UserError` where a file is bad."""
        if _key(pair) in self._kept or _size_in_memory(pair, self._bands) <= self._budget:
            yield SceneInMemory(self.read(pair))
            return
        # Both files stay open between the boxes: GDAL then keeps the blocks that neighbouring boxes share.
        with ExitStack() as files:
            image = files.enter_context(open_raster(pair.image))
            if image.driver not in WINDOWED:
                yield SceneInMemory(self.read(pair))
                return
            mask = files.enter_context(open_raster(pair.mask))
            labels = mask if mask.driver in WINDOWED else self._whole_mask(pair)
            yield SceneOnDisk(pair, image, labels, self._bands, self._nodata, self._masks)

    def read(self, pair: Pair) -> Scene:
        """The whole scene of ``pair``, of size ``pair.size``; :class:`UserError` where a file is bad."""
        scene = self._kept.get(_key(pair))
        if scene is None and self._last is not None and self._last[0] == _key(pair):
            scene = self._last[1]
        if scene is None:
            with open_raster(pair.image) as image:
                whole = SceneOnDisk(pair, image, self._masks.read(pair.mask), self._bands, self._nodata, self._masks)
                scene = whole.read((0, 0, *pair.size))
            if scene.nbytes <= self._budget:
                self._budget -= scene.nbytes
                self._kept[_key(pair)] = scene
            else:
                self._last = _key(pair), scene
        return scene

    def _whole_mask(self, pair: Pair) -> Labels:
        """The labels of a mask without windows, in source pixels, kept like the scenes."""
        mask = self._kept_masks.get(pair.mask)
        if mask is None and self._last_mask is not None and self._last_mask[0] == pair.mask:
            mask = self._last_mask[1]
        if mask is None:
            mask = self._masks.read(pair.mask)
            if mask.nbytes <= self._budget:
                self._budget -= mask.nbytes
                self._kept_masks[pair.mask] = mask
            else:
                self._last_mask = pair.mask, mask
        return mask


def valid_pixels(image: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_] | None:
    """Where ``image`` [bands, h, w] has data: finite in every band and not ``nodata`` in all bands. None for
    everywhere."""
    valid = np.ones(image.shape[1:], bool)
    if nodata is not None and np.isfinite(nodata):
        valid &= (image != nodata).any(axis=0)
    if np.issubdtype(image.dtype, np.floating):
        valid &= np.isfinite(image).all(axis=0)
    return None if valid.all() else valid


def _key(pair: Pair) -> tuple[Path, Path]:
    """An image may come with two masks: eroded ones score, full ones train."""
    return pair.image, pair.mask


def _size_in_memory(pair: Pair, bands: Sequence[int]) -> int:
    """Bytes of image and labels of the whole scene."""
    return pair.size[0] * pair.size[1] * (len(bands) * np.dtype(pair.header.dtype).itemsize + 1)
