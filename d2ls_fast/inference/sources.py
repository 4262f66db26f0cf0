"""Where the predictor's pixels come from: an array in memory, or a raster file read by windows."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio import DatasetReader
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from d2ls_fast.data.raster import WINDOWED, open_dataset, open_raster, read_image
from d2ls_fast.errors import UserError

Span = tuple[int, int]
Mask = NDArray[np.bool_]


class DamagedScene(UserError):
    """A part of a scene cannot be read."""


class Source(Protocol):
    """A raster that can be read by windows."""

    height: int
    width: int

    def read(self, rows: Span, columns: Span) -> tuple[NDArray[Any], Mask]:
        """Raw values ``[bands, h, w]`` in model order, and which pixels hold data, ``[h, w]``."""
        ...


class SceneSource(Source, Protocol):
    """A source that came from a file: it can be pictured, and may know where it lies."""

    georeference: dict[str, Any] | None
    """What rasterio takes to place a raster (``crs``, ``transform``, ``gcps``, ``rpcs``); ``None`` for a plain
    picture."""

    def thumbnail(self, factor: int) -> tuple[NDArray[np.float32], Mask]:
        """Red, green and blue shrunk by a whole factor, ``[3, h, w]``, and where there is data, ``[h, w]``."""
        ...


class ArraySource:
    """An image in memory, ``[bands, h, w]`` in raw units of any real type; ``known`` ``[h, w]``: where it has data."""

    def __init__(
        self, image: NDArray[Any], known: Mask | None = None, georeference: dict[str, Any] | None = None
    ) -> None:
        self._image = image
        self._known = has_data(image, [None] * len(image)) if known is None else known
        self.height, self.width = image.shape[1:]
        self.georeference = georeference

    def read(self, rows: Span, columns: Span) -> tuple[NDArray[Any], Mask]:
        down, across = slice(*rows), slice(*columns)
        return self._image[:, down, across], self._known[down, across]

    def thumbnail(self, factor: int) -> tuple[NDArray[np.float32], Mask]:
        """The first three bands (or the first one three times), averaged."""
        bands = self._image[:3] if len(self._image) >= 3 else self._image[[0, 0, 0]]
        columns = np.arange(0, self.width, factor)
        widths = np.diff(columns, append=self.width)
        # Row by row of the thumbnail: the image as float32 would be a multiple of what is in memory already.
        strips = (bands[:, top : top + factor].mean(axis=1, dtype=np.float64) for top in range(0, self.height, factor))
        shrunk = [np.add.reduceat(strip, columns, axis=1) / widths for strip in strips]
        known = self._known[np.ix_(*(centres(length, factor) for length in self._known.shape))]
        return np.stack(shrunk, axis=1).astype(np.float32), known


class RasterSource:
    """A raster file of which only the windows asked for are in memory. Threads may read at the same time.

    Args:
        path: the file.
        dataset: the same, opened by :func:`~d2ls_fast.data.raster.open_raster`; for the thread that made it.
        bands: its bands in model order, counted from 1.
        nodata: value that marks missing pixels; ``None`` takes the file's own nodata value, mask or alpha band.
    """

    def __init__(self, path: Path, dataset: DatasetReader, bands: Sequence[int], nodata: float | None = None) -> None:
        self._path, self._dataset, self._bands = path, dataset, list(bands)
        # A GDAL data set is not for several threads: each has one of its own.
        self._thread, self._opened, self._own = threading.get_ident(), ExitStack(), threading.local()
        self.height, self.width = dataset.height, dataset.width
        self.georeference = _georeference(dataset)
        self._nodata: list[float | None] = [nodata] * len(bands)
        self._masked = False
        if nodata is None:
            self._nodata = [dataset.nodatavals[band - 1] for band in bands]
            flags = set(dataset.mask_flag_enums[bands[0] - 1])
            # A band that the model uses is data, even where the file calls it alpha, as with NAIP's near infrared.
            alpha = {i + 1 for i, use in enumerate(dataset.colorinterp) if use == ColorInterp.alpha}
            has_mask = bool(flags & {MaskFlags.alpha, MaskFlags.per_dataset}) and MaskFlags.nodata not in flags
            self._masked = has_mask and not alpha & set(bands)

    def read(self, rows: Span, columns: Span) -> tuple[NDArray[Any], Mask]:
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        values, known = self._read(self._bands, window=window)
        return values, known & has_data(values, self._nodata)

    def thumbnail(self, factor: int) -> tuple[NDArray[np.float32], Mask]:
        """The file's red, green and blue, or else the model's first three bands; averaged, from overviews if any."""
        shape = (math.ceil(self.height / factor), math.ceil(self.width / factor))
        bands = self._picture_bands()
        values, known = self._read(bands, out_shape=(3, *shape), resampling=Resampling.average)
        nodata = dict(zip(self._bands, self._nodata, strict=True))
        return values.astype(np.float32), known & has_data(values, [nodata.get(band) for band in bands])

    def _picture_bands(self) -> list[int]:
        colours = list(self._dataset.colorinterp)
        wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if all(colour in colours for colour in wanted):
            return [colours.index(colour) + 1 for colour in wanted]
        return self._bands[:3] if len(self._bands) >= 3 else [self._bands[0]] * 3

    def close(self) -> None:
        """Close what other threads have opened; none of them may be reading."""
        self._opened.close()

    def _read(self, bands: list[int], **options: Any) -> tuple[NDArray[Any], Mask]:
        dataset = self._dataset_of_this_thread()
        try:
            values = dataset.read(bands, **options)
            known = np.ones(values.shape[1:], dtype=np.bool_)
            if self._masked:
                options["out_shape"] = values.shape[1:]
                known = dataset.dataset_mask(**options) > 0
        except RasterioError as error:
            cause = str(error.__cause__ or error).replace(str(self._path), "").strip(" :'")
            raise DamagedScene(f"{self._path}: damaged or cut short ({cause}); fetch the file again") from None
        return values, known

    def _dataset_of_this_thread(self) -> DatasetReader:
        if threading.get_ident() == self._thread:
            return self._dataset
        if not hasattr(self._own, "dataset"):
            self._own.dataset = open_dataset(self._path)
            self._opened.callback(self._own.dataset.close)
        dataset: DatasetReader = self._own.dataset
        return dataset


@contextmanager
def open_scene(path: Path, bands: Sequence[int], nodata: float | None = None) -> Iterator[SceneSource]:
    """The image file ``path`` as a source of its ``bands`` (counted from 1, in model order).

    GeoTIFF and JPEG 2000 are read by windows, other formats (and palette files, as RGB) at once. ``nodata`` marks
    missing pixels where the file itself does not.

    Raises:
        UserError: the file is missing, unreadable, has too few bands, or holds complex numbers.
    """
    with open_raster(path) as dataset:
        _check(path, dataset, bands)
        if _has_palette(dataset):
            image, _, _ = read_image(path, bands)
            yield ArraySource(image, has_data(image, [nodata] * len(bands)), _georeference(dataset))
        elif dataset.driver in WINDOWED:
            source = RasterSource(path, dataset, bands, nodata)
            with closing(source):
                yield source
        else:
            source = RasterSource(path, dataset, bands, nodata)
            image, known = source.read((0, source.height), (0, source.width))
            yield ArraySource(image, known, source.georeference)


def check_scene(path: Path, bands: Sequence[int]) -> None:
    """What :func:`open_scene` refuses by the file's header alone, before any long work starts."""
    with open_raster(path) as dataset:
        _check(path, dataset, bands)


def centres(length: int, factor: int) -> NDArray[np.intp]:
    """The pixels of an axis that stand for it when it is shrunk by a whole factor without averaging."""
    return np.minimum(np.arange(0, length, factor) + factor // 2, length - 1)


def has_data(values: NDArray[Any], nodata: Sequence[float | None]) -> Mask:
    """Pixels of ``[bands, h, w]`` that are finite in every band and differ from ``nodata`` in at least one."""
    known = np.ones(values.shape[1:], dtype=np.bool_)
    if values.dtype.kind == "f":
        known &= np.isfinite(values).all(axis=0)
    if all(value is not None for value in nodata):
        known &= np.any([band != value for band, value in zip(values, nodata, strict=True)], axis=0)
    return known


def _check(path: Path, dataset: DatasetReader, bands: Sequence[int]) -> None:
    count = 3 if _has_palette(dataset) else dataset.count
    if max(bands) > count:
        found = "1 band" if count == 1 else f"{count} bands"
        raise UserError(
            f"{path}: has {found}, the checkpoint was trained on bands {', '.join(map(str, bands))}; "
            f"give an image with at least {max(bands)} bands or a checkpoint trained on such images"
        )
    if any(np.dtype(kind).kind not in "uif" for kind in dataset.dtypes):
        raise UserError(f"{path}: holds {dataset.dtypes[0]} values; give real numbers, such as the amplitude")


def _has_palette(dataset: DatasetReader) -> bool:
    return bool(dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette)


def _georeference(dataset: DatasetReader) -> dict[str, Any] | None:
    """How a map of ``dataset`` is placed: ``None`` for a picture without coordinates in a picture's format."""
    points, points_crs = dataset.gcps
    place: dict[str, Any] = {} if dataset.rpcs is None else {"rpcs": dataset.rpcs}
    if points:
        return {"gcps": points, "crs": points_crs, **place}
    if dataset.crs is None and dataset.transform.is_identity:
        return place if place or dataset.driver in WINDOWED else None
    return {"crs": dataset.crs, "transform": dataset.transform, **place}
