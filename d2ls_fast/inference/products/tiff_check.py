"""Does a TIFF hold all that was written?"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import rasterio
from rasterio import DatasetReader
from rasterio.enums import MaskFlags
from rasterio.windows import Window

LOST = "not all of it reached the disk"


def check_geotiff(path: Path, factors: list[int], tile: int) -> None:
    """The GeoTIFF at ``path`` has overviews of the ``factors``; every tile of every band has a place within the file.

    GDAL does not report every failure of a write, least of all of those that happen when a file is closed.

    Raises:
        OSError: an overview or a tile is missing or cut off.
        RasterioError: the file cannot be read at all.
    """
    size = path.stat().st_size
    with rasterio.open(path) as dataset:
        if any(dataset.overviews(band) != factors for band in dataset.indexes):
            raise OSError(LOST)
        for band, (level, factor) in product(dataset.indexes, [(None, 1), *enumerate(factors)]):
            down, across = (math.ceil(math.ceil(length / factor) / tile) for length in dataset.shape)
            for y, x in product(range(down), range(across)):
                start, length = (
                    int(dataset.get_tag_item(f"BLOCK_{item}_{x}_{y}", "TIFF", bidx=band, ovr=level) or 0)
                    for item in ("OFFSET", "SIZE")
                )
                if not start or not length or start + length > size:
                    raise OSError(LOST)
        masked = MaskFlags.per_dataset in dataset.mask_flag_enums[0]
        if masked:
            _read_mask(dataset, tile)
    for level in range(len(factors) if masked else 0):
        with rasterio.open(path, overview_level=level) as overview:
            _read_mask(overview, tile)


def _read_mask(dataset: DatasetReader, rows: int) -> None:
    """GDAL does not say where the tiles of a mask are: read it."""
    if MaskFlags.per_dataset not in dataset.mask_flag_enums[0]:
        raise OSError(LOST)
    for top in range(0, dataset.height, rows):
        dataset.read_masks(1, window=Window(0, top, dataset.width, min(rows, dataset.height - top)))
