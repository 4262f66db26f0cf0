"""The areas of a map as polygons in a GeoPackage."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS

from d2ls_fast.inference.products.polygons import Areas, OpenAreas
from d2ls_fast.inference.products.product import Product
from d2ls_fast.inference.sources import SceneSource
from d2ls_fast.models.checkpoint import ModelCard

LAYER = "map"
STRIP_PIXELS = 2**21
"""Pixels polygonised at once: with an area per pixel, the worst there is, about 2 GB; with real maps, some MB."""
BATCH = 20_000  # polygons per transaction
FIELDS = ["class", "name", "colour", "area", "pixels"]


def polygons(source: SceneSource, card: ModelCard, smallest_area: float, tags: Mapping[str, str]) -> Product:
    """The polygons in map coordinates where the scene has an affine transform, else in pixels."""
    place = source.georeference or {}
    transform, crs = (place["transform"], place.get("crs")) if "transform" in place else (Affine.identity(), None)

    def writer(path: Path) -> GeoPackageWriter:
        return GeoPackageWriter(path, source.width, card, transform, crs, smallest_area, tags)

    return Product("polygons.gpkg", writer, lambda rows: (rows.labels,))


class GeoPackageWriter:
    """Takes the labels of a map from the top and writes the outline of every area of connected pixels of one class.

    The layer ``map`` has the fields ``class`` (value), ``name``, ``colour`` (#RRGGBB), ``area`` (in the square of the
    coordinate system's unit; pixels where there is none) and ``pixels``. A context manager; the file is complete after
    ``finish``. The date that a GeoPackage holds is fixed, so that the same map gives the same bytes.

    Args:
        path: where to write.
        width: of the map.
        card: names and colours of the classes.
        transform: from pixels (column, row) to map coordinates; the identity gives pixels, rows counted downwards.
        crs: of the map coordinates, as rasterio takes it.
        smallest_area: areas below it (in the unit of ``area``) are left out, and leave a hole.
        tags: metadata of the layer.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        card: ModelCard,
        transform: Affine,
        crs: CRS | str | None,
        smallest_area: float = 0.0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._crs, self._tags = path, CRS.from_user_input(crs).to_wkt() if crs else None, dict(tags or {})
        self._transform, self._smallest_area = transform, smallest_area
        self._names = np.array(card.classes, dtype=object)
        self._colours = np.array(["#{:02X}{:02X}{:02X}".format(*colour) for colour in card.palette], dtype=object)
        self._areas = OpenAreas(width)
        self._strip = np.empty((max(1, STRIP_PIXELS // width), width), np.uint8)
        self._gathered = self._count = self._written = 0
        self._waiting: list[Areas] = []

    def write(self, labels: NDArray[np.uint8]) -> None:
        """The next rows, ``[r, w]``."""
        while len(labels):
            count = min(len(self._strip) - self._gathered, len(labels))
            self._strip[self._gathered : self._gathered + count] = labels[:count]
            self._gathered += count
            labels = labels[count:]
            if self._gathered == len(self._strip):
                self._polygonise()

    def finish(self) -> None:
        """Write the areas still open, and check that all polygons reached the disk."""
        self._polygonise()
        self._keep(self._areas.close())
        self._flush()
        self._check()

    def _check(self) -> None:
        """GDAL says nothing when it cannot write the spatial index."""
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as database:
                whole = database.execute("PRAGMA quick_check").fetchone()[0] == "ok"
                counts = [
                    database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                    for table in (LAYER, f"rtree_{LAYER}_geom")
                ]
        except sqlite3.Error:
            whole, counts = False, []
        if not whole or counts != [self._written] * 2:
            raise OSError("not all of it reached the disk")

    def _polygonise(self) -> None:
        if self._gathered:
            self._keep(self._areas.add(self._strip[: self._gathered]))
            self._gathered = 0
        if self._count >= BATCH:
            self._flush()

    def _keep(self, areas: Areas) -> None:
        values, polygons = areas
        large = shapely.area(polygons) * abs(self._transform.determinant) >= self._smallest_area
        self._waiting.append((values[large], polygons[large]))
        self._count += int(large.sum())

    def _flush(self) -> None:
        values, polygons = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        pixels = shapely.area(polygons)
        a, b, c, d, e, f = self._transform[:6]
        placed = shapely.transform(polygons, lambda points: points @ np.array([[a, d], [b, e]]) + (c, f))
        with _fixed_date(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            pyogrio.raw.write(
                str(self._path),
                geometry=shapely.to_wkb(placed),
                field_data=[
                    values.astype(np.int32),
                    self._names[values],
                    self._colours[values],
                    pixels * abs(self._transform.determinant),
                    pixels.astype(np.int64),
                ],
                fields=np.array(FIELDS, dtype=object),
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                crs=self._crs,
                append=self._written > 0,
                layer_metadata=self._tags if not self._written else None,
            )
        self._written += len(values)
        self._waiting, self._count = [], 0

    def __enter__(self) -> GeoPackageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()


@contextmanager
def _fixed_date() -> Iterator[None]:
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
