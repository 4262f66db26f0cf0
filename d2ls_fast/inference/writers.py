"""Rasters written strip by strip: GeoTIFF as it goes, PNG at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from d2ls_fast.data.raster import write_label_raster

BLOCK = 512


class RasterWriter(Protocol):
    """A context manager that takes the rows of a single-band raster from the top."""

    def write(self, rows: NDArray[Any]) -> None:
        """The next rows, ``[rows, width]``."""
        ...

    def __enter__(self) -> RasterWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class GeoTiffWriter:
    """A tiled, deflated GeoTIFF. Rows are gathered to whole tiles, so that no tile is compressed twice.

    Args:
        path: where to write.
        shape: height and width of the whole raster.
        dtype: of the values.
        nodata: value of pixels without data.
        georeference: ``crs``, ``transform`` and ``gcps`` as rasterio takes them.
        palette: colour table, RGB 0..255 for the values from 0; ``nodata`` becomes transparent.
        tags: metadata.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        dtype: str,
        nodata: float,
        georeference: dict[str, Any],
        palette: Sequence[Sequence[int]] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._dataset = rasterio.open(
                path,
                "w",
                driver="GTiff",
                height=shape[0],
                width=shape[1],
                count=1,
                dtype=dtype,
                nodata=nodata,
                tiled=True,
                blockxsize=BLOCK,
                blockysize=BLOCK,
                compress="deflate",
                predictor=3 if np.dtype(dtype).kind == "f" else 1,
                bigtiff="if_safer",
                **georeference,
            )
        if palette is not None:
            table = {value: (*map(int, colour[:3]), 255) for value, colour in enumerate(palette)}
            self._dataset.write_colormap(1, {**table, int(nodata): (0, 0, 0, 0)})
        self._dataset.update_tags(**(tags or {}))
        self._waiting: list[NDArray[Any]] = []
        self._gathered = self._written = 0

    def write(self, rows: NDArray[Any]) -> None:
        self._waiting.append(rows)
        self._gathered += len(rows)
        if self._gathered >= BLOCK:
            self._put(self._gathered - self._gathered % BLOCK)

    def _put(self, count: int) -> None:
        rows = np.concatenate(self._waiting)
        self._dataset.write(rows[:count], 1, window=Window(0, self._written, rows.shape[1], count))
        self._waiting = [rows[count:]]
        self._gathered -= count
        self._written += count

    def __enter__(self) -> GeoTiffWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._gathered:
            self._put(self._gathered)
        self._dataset.close()


class PngWriter:
    """An 8-bit PNG, held in memory until all rows are there: indices with a colour table, or grey without a palette."""

    def __init__(self, path: Path, shape: tuple[int, int], palette: Sequence[Sequence[int]] | None = None) -> None:
        self._path, self._palette = path, palette
        self._values = np.zeros(shape, dtype=np.uint8)
        self._written = 0

    def write(self, rows: NDArray[Any]) -> None:
        self._values[self._written : self._written + len(rows)] = rows
        self._written += len(rows)

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._palette is not None:
            write_label_raster(self._path, self._values, self._palette)
        else:
            Image.fromarray(self._values).save(self._path, format="PNG")
