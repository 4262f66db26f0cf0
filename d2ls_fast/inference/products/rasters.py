"""The rasters among the products: GeoTIFF, or PNG for plain pictures, with colours, names and scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling

from d2ls_fast.inference.products.geotiff import GeoTiffWriter
from d2ls_fast.inference.products.png import PngWriter
from d2ls_fast.inference.products.product import Product
from d2ls_fast.inference.products.rows import NODATA, MapRows
from d2ls_fast.inference.sources import SceneSource
from d2ls_fast.models.checkpoint import ModelCard

Tags = Mapping[str, str]


def labels(source: SceneSource, card: ModelCard, tags: Tags, cog: bool) -> Product:
    """Class values as uint8 with a colour table, 255 where no data.

    A GeoTIFF has the classes' names as metadata ``class_<value>`` too.
    """

    def geotiff(path: Path) -> GeoTiffWriter:
        names = {f"class_{value}": name for value, name in enumerate(card.classes)}
        place = source.georeference or {}
        shape = (1, source.height, source.width)
        writer = GeoTiffWriter(
            path, shape, "uint8", place, nodata=NODATA, overviews=Resampling.mode, cog=cog, tags={**names, **tags}
        )
        table = {value: (*map(int, colour[:3]), 255) for value, colour in enumerate(card.palette)}
        writer.dataset.write_colormap(1, {**table, NODATA: (0, 0, 0, 0)})
        writer.dataset.set_band_description(1, "class")
        return writer

    def png(path: Path) -> PngWriter:
        return PngWriter(path, (source.height, source.width), card.palette, tags)

    if source.georeference is None:
        return Product("labels.png", png, lambda rows: (rows.labels,))
    return Product("labels.tif", geotiff, lambda rows: (rows.labels[None],))


def confidence(source: SceneSource, tags: Tags, cog: bool) -> Product:
    """The probability of the label: float32, NaN where no data, or a PNG of grey 0..255, 0 where no data."""

    def geotiff(path: Path) -> GeoTiffWriter:
        place, nodata = source.georeference or {}, float("nan")
        shape = (1, source.height, source.width)
        writer = GeoTiffWriter(
            path, shape, "float32", place, nodata=nodata, overviews=Resampling.average, cog=cog, tags=tags
        )
        writer.dataset.set_band_description(1, "probability of the class")
        return writer

    def png(path: Path) -> PngWriter:
        return PngWriter(path, (source.height, source.width), tags=tags)

    def values(rows: MapRows) -> NDArray[np.float32]:
        if rows.confidence is None:
            raise ValueError("the rows of the map hold no confidence")
        return rows.confidence

    def grey(rows: MapRows) -> NDArray[np.uint8]:
        return (np.nan_to_num(values(rows)) * 255).round().astype(np.uint8)

    if source.georeference is None:
        return Product("confidence.png", png, lambda rows: (grey(rows),))
    return Product("confidence.tif", geotiff, lambda rows: (values(rows)[None],))


def probabilities(source: SceneSource, card: ModelCard, tags: Tags, cog: bool) -> Product:
    """uint8, a band per class with its name; the value times the band's scale, 1/255, is the probability.

    0 is a probability, so pixels without data are told by a mask. A TIFF for plain pictures too: a PNG has no room for
    the bands.
    """

    def geotiff(path: Path) -> GeoTiffWriter:
        count, place = len(card.classes), source.georeference or {}
        shape = (count, source.height, source.width)
        writer = GeoTiffWriter(
            path, shape, "uint8", place, nodata=None, overviews=Resampling.average, cog=cog, tags=tags
        )
        writer.dataset.descriptions = tuple(card.classes)
        writer.dataset.scales = (1 / 255,) * count
        return writer

    def values(rows: MapRows) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        if rows.probabilities is None:
            raise ValueError("the rows of the map hold no probabilities")
        return rows.probabilities, rows.labels != NODATA

    return Product("probabilities.tif", geotiff, values)


def write_category_names(path: Path, classes: list[str]) -> None:
    """The classes' names where GDAL keeps a GeoTIFF's category names: in the file ``path`` beside it, ``.aux.xml``.

    Geographic information systems show them in the legend; a TIFF itself has no place for them.
    """
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in classes:
        ElementTree.SubElement(names, "Category").text = name
    ElementTree.indent(root)
    path.write_bytes(ElementTree.tostring(root, encoding="utf-8") + b"\n")
