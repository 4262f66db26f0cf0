"""Reading imagery and masks (PNG, JPEG, GeoTIFF, JPEG 2000, BMP, GIF) and writing label rasters, all through GDAL.

Only the drivers of these formats are opened: a stranger's file named ``.tif`` that is really a GDAL virtual data set
could otherwise make the reader fetch other files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing

EXTENSIONS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif")
_DRIVERS = ["PNG", "JPEG", "GTiff", "JP2OpenJPEG", "BMP", "GIF"]
WINDOWED = ("GTiff", "JP2OpenJPEG")
"""Formats that are read by windows; others decode from the top at every read, so they are read once, whole."""
BLOCK_CACHE = 64 * 2**20
"""Bytes of decoded blocks that GDAL keeps (its own default is a twentieth of the memory): enough for the height of a
window of a striped scene of three bands, 40,000 pixels wide."""
# Plain images are welcome. For good and by module: catch_warnings is not made for threads, which read files too.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module=r"d2ls_fast\.data\.raster")
_RGB = (1, 2, 3)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RasterProfile:
    """Where a raster lies: coordinate reference system (None where the file only has a transform) and affine
    transform."""

    crs: rasterio.crs.CRS | None
    transform: rasterio.Affine


@dataclass(frozen=True)
class RasterHeader:
    """What a file says about itself without its pixels being read."""

    height: int
    width: int
    bands: tuple[int, ...]
    """Bands without alpha, counted from 1; (1, 2, 3) for a palette file, which reads as RGB."""
    count: int
    """All bands that can be asked for."""
    dtype: str
    georeference: RasterProfile | None
    nodata: float | None
    windowed: bool
    """Whether it can be read by windows."""


@contextmanager
def open_raster(path: str | os.PathLike[str]) -> Iterator[rasterio.DatasetReader]:
    """The open GDAL data set of an image file.

    Raises:
        UserError: no such file, not an image of a known format, or damaged (also when reading inside the block fails).
    """
    # GDAL's shortcut for whole PNG files must be off: it gives zeros, without an error, for what a cut one lacks.
    with (
        readable(Path(path)),
        rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM="NO", GDAL_CACHEMAX=BLOCK_CACHE),
        open_dataset(Path(path)) as source,
    ):
        yield source


def open_dataset(path: Path) -> rasterio.DatasetReader:
    """As :func:`open_raster`, for a thread of its own; to be closed by the caller."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    with readable(path):
        # rasterio.open takes a single driver's name, the reader behind it a list of those allowed.
        return rasterio.io.DatasetReader(path, driver=_DRIVERS)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside the block, what GDAL finds wrong is a :class:`UserError` that names ``path``."""
    try:
        yield
    except RasterioError as error:
        cause = str(error.__cause__ or error).replace(str(path), "").strip(" :'")
        raise UserError(
            f"{path}: not a readable {', '.join(e[1:].upper() for e in EXTENSIONS[:2])}, JPEG or JP2 image "
            f"({cause}); replace the file or take it out of the folder"
        ) from None


def read_header(path: str | os.PathLike[str]) -> RasterHeader:
    """Size, bands, dtype, georeference and nodata value of an image file (:class:`UserError` where unreadable)."""
    with open_raster(path) as source:
        bands = _RGB if _palette(source) is not None else _colour_bands(source)
        return RasterHeader(
            height=source.height,
            width=source.width,
            bands=bands,
            count=max(source.count, len(bands)),
            dtype=source.dtypes[0],
            georeference=_georeference(source),
            nodata=source.nodata,
            windowed=source.driver in WINDOWED,
        )


def read_image(
    path: str | os.PathLike[str], bands: Sequence[int] | None = None, window: Window | None = None
) -> tuple[Array, RasterProfile | None, float | None]:
    """Pixels of an image.

    Args:
        path: PNG, JPEG, GeoTIFF, JP2, BMP or GIF.
        bands: source bands in the order wanted, counted from 1; by default all but alpha. A palette file has three:
        RGB.
        window: part of the image (``rasterio.windows.Window``); by default all of it.

    Returns:
        ``(array [bands, h, w] of the source dtype, georeference or None, nodata value or None)``. The georeference is
        that of the whole file.

    Raises:
        UserError: the file is missing, unreadable or has no such band.
    """
    with open_raster(path) as source:
        pixels, nodata = image_pixels(source, bands, window)
        return pixels, _georeference(source), nodata


def image_pixels(
    source: rasterio.DatasetReader, bands: Sequence[int] | None = None, window: Window | None = None
) -> tuple[Array, float | None]:
    """The pixels of an open image and its nodata value, as :func:`read_image` gives them."""
    palette = _palette(source)
    available = 3 if palette is not None else source.count
    chosen = tuple(bands) if bands is not None else (_RGB if palette is not None else _colour_bands(source))
    wrong = [band for band in chosen if not 1 <= band <= available]
    if wrong:
        raise UserError(f"{source.name}: has {available} band(s), band {wrong[0]} is asked for; correct bands")
    if palette is None:
        return source.read(list(chosen), window=window), source.nodata
    coloured = palette[source.read(1, window=window)]
    return np.moveaxis(coloured, -1, 0)[[band - 1 for band in chosen]], None


Mask = tuple[Array, npt.NDArray[np.uint8] | None, float | None]
"""Stored values, palette and nodata value of a mask; see :func:`read_mask`."""


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """Stored values of a mask.

    Returns:
        ``(values, palette, nodata)``: values [h, w] (index or palette mode) or [h, w, 3] (RGB, alpha dropped); palette
        uint8 [256, 3] of a palette-mode file, else None.

    Raises:
        UserError: the file is missing, unreadable or has two bands or more than four.
    """
    with open_raster(path) as source:
        return mask_values(source)


def mask_values(source: rasterio.DatasetReader, window: Window | None = None) -> Mask:
    """The stored values of an open mask, or of a ``window`` of it, as :func:`read_mask` gives them."""
    if source.count in (1, 2) and len(_colour_bands(source)) == 1:
        return source.read(1, window=window), _palette(source), source.nodata
    if source.count in (3, 4):
        return np.moveaxis(source.read([1, 2, 3], window=window), 0, -1), None, source.nodata
    raise UserError(f"{source.name}: a mask has one band or is RGB, this one has {source.count} bands; export it again")


def write_label_raster(
    path: str | os.PathLike[str],
    labels: npt.NDArray[np.integer],
    palette: Sequence[Sequence[int]],
    georeference: RasterProfile | None = None,
    nodata: int | None = None,
) -> None:
    """Write ``labels`` [h, w] (uint8, or int16 for more than 256 classes) with a colour table.

    ``.tif`` gives a tiled, deflated GeoTIFF with coordinates and nodata value, ``.png`` a palette PNG (uint8 only; a
    georeference does not fit in). Written under a temporary name and renamed.

    Raises:
        UserError: another extension, labels that a PNG cannot hold, or a folder or disk that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
        raise UserError(f"{path}: label rasters are written as .png or .tif; change the extension")
    png = path.suffix.lower() == ".png"
    if png and labels.dtype != np.uint8:
        raise UserError(f"{path}: a palette PNG holds at most 256 classes; write a .tif")
    with replacing(path, RasterioError) as temporary:
        if png:
            picture = Image.fromarray(np.ascontiguousarray(labels))
            picture.putpalette([value for colour in _colour_table(palette) for value in colour])
            picture.save(temporary, format="PNG")
        else:
            _write_geotiff(temporary, labels, palette, georeference, nodata)


def _write_geotiff(
    path: Path,
    labels: npt.NDArray[np.integer],
    palette: Sequence[Sequence[int]],
    georeference: RasterProfile | None,
    nodata: int | None,
) -> None:
    place = {"crs": georeference.crs, "transform": georeference.transform} if georeference else {}
    height, width = labels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype=labels.dtype.name,
            nodata=nodata,
            compress="deflate",
            tiled=True,
            blockxsize=256,
            blockysize=256,
            BIGTIFF="IF_SAFER",
            **place,
        ) as target:
            target.write(labels, 1)
            if labels.dtype == np.uint8:
                target.write_colormap(1, dict(enumerate(_colour_table(palette))))


def _colour_table(palette: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    declared = [(int(red), int(green), int(blue)) for red, green, blue in palette][:256]
    return declared + [(0, 0, 0)] * (256 - len(declared))


def _palette(source: rasterio.DatasetReader) -> npt.NDArray[np.uint8] | None:
    if source.count != 1 or source.colorinterp[0] != ColorInterp.palette or source.dtypes[0] != "uint8":
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, colour in source.colormap(1).items():
        table[index] = colour[:3]
    return table


def _colour_bands(source: rasterio.DatasetReader) -> tuple[int, ...]:
    return tuple(band for band, use in enumerate(source.colorinterp, start=1) if use != ColorInterp.alpha)


def _georeference(source: rasterio.DatasetReader) -> RasterProfile | None:
    if source.crs is None and source.transform.is_identity:
        return None
    return RasterProfile(source.crs, source.transform)
