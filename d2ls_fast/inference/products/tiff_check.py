"""Does a TIFF hold all its tiles?"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import rasterio


def check_tiles(path: Path, tile: int) -> None:
    """Every tile of every band and overview of the GeoTIFF at ``path`` has a place that lies within the file.

    GDAL does not report every failure of a write, least of all of those that happen when a file is closed.

    Raises:
        OSError: a tile is missing or cut off.
    """
    size = path.stat().st_size
    with rasterio.open(path) as dataset:
        levels = [(None, 1), *enumerate(dataset.overviews(1))]
        for band, (level, factor) in product(dataset.indexes, levels):
            down, across = (math.ceil(math.ceil(length / factor) / tile) for length in dataset.shape)
            for y, x in product(range(down), range(across)):
                start, length = (
                    int(dataset.get_tag_item(f"BLOCK_{item}_{x}_{y}", "TIFF", bidx=band, ovr=level) or 0)
                    for item in ("OFFSET", "SIZE")
                )
                if not start or not length or start + length > size:
                    raise OSError("not all of it reached the disk")
