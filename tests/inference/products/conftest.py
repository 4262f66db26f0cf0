"""A scene in memory and random maps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.transform import from_origin

from d2ls_fast.inference.products import NODATA, MapRows, Products, Wanted, write_products
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard


class FullMap:
    """A whole random map of large and small areas, with a corner without data."""

    def __init__(self, height: int, width: int, classes: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        coarse = random.random((classes, height // 16 + 1, width // 16 + 1)).repeat(16, 1).repeat(16, 2)
        scores = coarse[:, :height, :width] + 0.1 * random.random((classes, height, width))
        probabilities = scores**4 / (scores**4).sum(axis=0)
        self.labels = probabilities.argmax(axis=0).astype(np.uint8)
        self.known = np.add.outer(np.arange(height), np.arange(width)) >= height // 3
        self.labels[~self.known] = NODATA
        self.probabilities = np.where(self.known, (probabilities * 255).round(), 0).astype(np.uint8)
        self.confidence = np.where(self.known, probabilities.max(axis=0), np.nan).astype(np.float32)

    def rows(self, strip: int = 37) -> Iterator[MapRows]:
        for start in range(0, len(self.labels), strip):
            part = slice(start, start + strip)
            yield MapRows(start, self.labels[part], self.confidence[part], self.probabilities[:, part])


@pytest.fixture
def place() -> dict[str, Any]:
    """A georeference: 30 m pixels in UTM zone 16 N."""
    return {"crs": "EPSG:32616", "transform": from_origin(500_000, 4_000_000, 30, 30)}


@pytest.fixture
def full_map() -> Callable[..., FullMap]:
    """``full_map(height, width)``: a random map of the card's four classes."""
    return lambda height, width: FullMap(height, width, 4)


@pytest.fixture
def make_products(tmp_path: Path, card: ModelCard) -> Callable[..., Products]:
    """``make_products(full_map, georeference, folder="out", strip=37, **wanted)``, for a scene called ``scene``."""

    def make(
        full: FullMap, place: dict[str, Any] | None, folder: str = "out", strip: int = 37, **wanted: Any
    ) -> Products:
        image: NDArray[np.uint8] = np.stack([full.labels * 40] * 3)
        source = ArraySource(image, full.known, place)
        tags = {"model": "d2ls", "checkpoint": "abc"}
        return write_products(
            source, full.rows(strip), card, Path("scene.tif"), tmp_path / folder, Wanted(**wanted), tags
        )

    return make
