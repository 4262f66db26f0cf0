"""GeoTIFF, plain or cloud-optimised, written strip by strip."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy
from rasterio.windows import Window

from d2ls_fast.inference.products.tiff_check import LOST, check_geotiff

BLOCK = 512
CACHE = 64 * 2**20
"""Bytes of GDAL's block cache while products are made: its own default, a twentieth of the machine's memory, is no
bound. Rows are written as whole tiles, which needs no cache; reading back for overviews wants a row of tiles."""


class GeoTiffWriter:
    """Takes the rows of a raster from the top and gathers them to whole tiles, so that no tile is compressed twice.

    The file is tiled (512), deflated, with overviews down to one tile, and BigTIFF where it may need to be. A context
    manager; the file is complete after ``finish``. At most 512 rows are in memory.

    Args:
        path: where to write; beside it a file ``plain-<name>`` stands meanwhile for the cloud-optimised layout.
        shape: bands, height and width of the whole raster.
        dtype: of the values.
        georeference: ``crs``, ``transform``, ``gcps`` and ``rpcs`` as rasterio takes them.
        nodata: value of pixels without data; ``None`` to store a mask instead, given with every ``write``.
        overviews: how pixels are put together in overviews.
        cog: lay the file out as a Cloud-Optimised GeoTIFF, https://docs.ogc.org/is/21-026/21-026.html.
        tags: metadata.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: str,
        georeference: Mapping[str, Any],
        *,
        nodata: float | None,
        overviews: Resampling,
        cog: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        count, self._height, self._width = shape
        self._path, self._overviews, self._cog = path, overviews, cog
        self._plain = path.with_name(f"plain-{path.name}") if cog else path
        self._predictor = 3 if np.dtype(dtype).kind == "f" else 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self.dataset = rasterio.open(
                self._plain,
                "w",
                driver="GTiff",
                count=count,
                height=self._height,
                width=self._width,
                dtype=dtype,
                nodata=nodata,
                tiled=True,
                blockxsize=BLOCK,
                blockysize=BLOCK,
                compress="deflate",
                predictor=self._predictor,
                interleave="band",
                photometric="minisblack",
                bigtiff="if_safer",
                **georeference,
            )
        self.dataset.update_tags(**(tags or {}))
        self._strip = np.empty((count, BLOCK, self._width), dtype)
        self._mask = np.empty((BLOCK, self._width), np.bool_) if nodata is None else None
        self._gathered = self._written = 0

    def write(self, values: NDArray[Any], known: NDArray[np.bool_] | None = None) -> None:
        """The next rows, ``[bands, r, w]``, and where they have data, ``[r, w]``, for a raster with a mask."""
        done = 0
        while done < values.shape[1]:
            count = min(BLOCK - self._gathered, values.shape[1] - done)
            place = slice(self._gathered, self._gathered + count)
            self._strip[:, place] = values[:, done : done + count]
            if self._mask is not None and known is not None:
                self._mask[place] = known[done : done + count]
            self._gathered += count
            done += count
            if self._gathered == BLOCK:
                self._put()

    def finish(self) -> None:
        """Write the last rows and the overviews, and check that all of it reached the disk."""
        self._put()
        self.dataset.close()
        factors = _factors(max(self._height, self._width))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            check_geotiff(self._plain, [], BLOCK)
            if self._cog:
                self._copy_to_cog()
            elif factors:
                with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK), rasterio.open(self._path, "r+") as dataset:
                    dataset.build_overviews(factors, self._overviews)
            check_geotiff(self._path, factors, BLOCK)

    def _put(self) -> None:
        if not self._gathered:
            return
        window = Window(0, self._written, self._width, self._gathered)
        self.dataset.write(self._strip[:, : self._gathered], window=window)
        if self._mask is not None:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                self.dataset.write_mask(self._mask[: self._gathered], window=window)
        self._written += self._gathered
        self._gathered = 0

    def _copy_to_cog(self) -> None:
        try:
            copy(
                self._plain,
                self._path,
                driver="COG",
                BLOCKSIZE=BLOCK,
                COMPRESS="DEFLATE",
                PREDICTOR="FLOATING_POINT" if self._predictor == 3 else "NO",
                OVERVIEW_RESAMPLING=self._overviews.name.upper(),
                BIGTIFF="IF_SAFER",
            )
        except SystemError:  # rasterio's way to say that GDAL failed without a reason
            raise OSError(LOST) from None
        self._plain.unlink()

    def __enter__(self) -> GeoTiffWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dataset.close()


def _factors(length: int) -> list[int]:
    """The overviews of a raster with the longer side ``length``: halved until it fits one tile."""
    factors: list[int] = []
    while length > BLOCK * 2 ** len(factors):
        factors.append(2 ** (len(factors) + 1))
    return factors
