"""All products of one map, in one pass over its rows, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import rasterio
from pyogrio.errors import DataLayerError, DataSourceError

# rasterio lets some of GDAL's errors through as they are, and gives their class no public name.
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from d2ls_fast.files import replacing_together, unwritable
from d2ls_fast.inference.products import geopackage, rasters
from d2ls_fast.inference.products.geotiff import CACHE_MB
from d2ls_fast.inference.products.product import Product, Writer
from d2ls_fast.inference.products.rows import MapRows
from d2ls_fast.inference.products.tally import Tally, overlay_picture
from d2ls_fast.inference.sources import SceneSource
from d2ls_fast.models.checkpoint import ModelCard


@dataclass(frozen=True)
class Wanted:
    """Which products are made beside the labels."""

    confidence: bool = False
    probabilities: bool = False
    polygons: bool = False
    smallest_area: float = 0.0
    """Polygons below it are left out: in square units of the map's coordinate system, or pixels without one."""
    overlay: bool = True
    cog: bool = False
    """Lay GeoTIFFs out as Cloud-Optimised GeoTIFFs."""


@dataclass(frozen=True)
class Products:
    """What was made of one map."""

    files: list[Path]
    shares: list[float]
    """Each class's share of the pixels with data, 0..1."""
    overlay_factor: int
    """Pixels of the scene per pixel of the overlay, along one side."""


def write_products(
    source: SceneSource,
    rows: Iterable[MapRows],
    card: ModelCard,
    scene: Path,
    output: Path,
    wanted: Wanted,
    tags: Mapping[str, str] | None = None,
) -> Products:
    """Write the map ``rows`` of ``source`` into the folder ``output``, each name beginning with the scene's stem:

    - ``_labels.tif`` (for GeoTIFF, JPEG 2000 and whatever has coordinates): placed as the scene, with a colour table,
      255 where the scene has no data, the classes' names as metadata ``class_<value>`` and as GDAL's category names (in
      ``_labels.tif.aux.xml``); ``_labels.png`` (palette PNG, 255 where no data) for plain pictures;
    - ``_confidence.tif`` (float32, the probability of the label, NaN where no data) or ``_confidence.png`` (0..255);
    - ``_probabilities.tif`` (for plain pictures too): uint8, a band per class, masked where no data;
    - ``_polygons.gpkg``: see :class:`~d2ls_fast.inference.products.geopackage.GeoPackageWriter`; in map coordinates
      where the scene has an affine transform, else in pixels, rows counted downwards;
    - ``_overlay.png``: the scene tinted with the classes' colours and a legend, at most 2048 pixels a side.

    All are written in a temporary folder and moved when the whole is made. The same rows give the same bytes.

    Args:
        source: the scene.
        rows: the whole map in order from the top, with confidence and probabilities where they are wanted.
        card: the classes' names and colours.
        scene: the scene's file.
        output: made where it is missing.
        wanted: the products.
        tags: where the map comes from, as metadata of the labels, confidence, probabilities and polygons.

    Raises:
        UserError: a product cannot be written; nothing is left.
    """
    tally = Tally(source.height, source.width, len(card.classes))
    products = _planned(source, card, wanted, dict(tags or {}))
    paths = {product.name: output / f"{scene.stem}_{product.name}" for product in products}
    with replacing_together(output, scene.stem) as folder, rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        with ExitStack() as opened:
            writers: list[Writer] = []
            for product in products:
                with _writing(paths[product.name]):
                    writers.append(opened.enter_context(product.open(folder / paths[product.name].name)))
            for part in _checked(rows, source.height):
                tally.add(part)
                for product, writer in zip(products, writers, strict=True):
                    with _writing(paths[product.name]):
                        writer.write(*product.parts(part))
            for product, writer in zip(products, writers, strict=True):
                with _writing(paths[product.name]):
                    writer.finish()
        if "labels.tif" in paths:
            names = paths["labels.tif"].with_suffix(".tif.aux.xml")
            with _writing(names):
                rasters.write_category_names(folder / names.name, card.classes)
        if wanted.overlay:
            paths["overlay.png"] = output / f"{scene.stem}_overlay.png"
            picture = overlay_picture(source, tally, card)
            with _writing(paths["overlay.png"]):
                picture.save(folder / paths["overlay.png"].name)
    return Products(list(paths.values()), tally.shares, tally.factor)


def _planned(source: SceneSource, card: ModelCard, wanted: Wanted, tags: dict[str, str]) -> list[Product]:
    products = [rasters.labels(source, card, tags, wanted.cog)]
    if wanted.confidence:
        products.append(rasters.confidence(source, tags, wanted.cog))
    if wanted.probabilities:
        products.append(rasters.probabilities(source, card, tags, wanted.cog))
    if wanted.polygons:
        products.append(geopackage.polygons(source, card, wanted.smallest_area, tags))
    return products


def _checked(rows: Iterable[MapRows], height: int) -> Iterator[MapRows]:
    done = 0
    for part in rows:
        if part.start != done:
            raise ValueError(f"row {part.start} of the map follows on row {done - 1}")
        done += len(part.labels)
        yield part
    if done != height:
        raise ValueError(f"the map has {done} rows of {height}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Inside the block, what a library cannot write is a :class:`UserError` that names ``path``."""
    try:
        yield
    except (OSError, RasterioError, CPLE_BaseError, DataSourceError, DataLayerError) as error:
        raise unwritable(path, error.__cause__ if isinstance(error.__cause__, CPLE_BaseError) else error) from None
