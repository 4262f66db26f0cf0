"""Tiny data sets made on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from d2ls_fast.config import validate
from d2ls_fast.data.config import DataSettings

WriteTiff = Callable[..., Path]


@pytest.fixture
def write_png() -> Callable[[Path, np.ndarray], Path]:
    """``write_png(path, array [h, w] or [h, w, 3|4])``, folders made."""

    def write(path: Path, array: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path

    return write


@pytest.fixture
def write_tiff() -> WriteTiff:
    """``write_tiff(path, array [bands, h, w], origin=(x, y), pixel=10, crs=..., **rasterio profile)``."""

    def write(
        path: Path,
        array: np.ndarray,
        origin: tuple[float, float] | None = None,
        pixel: float = 10.0,
        crs: str = "EPSG:32632",
        **profile: Any,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if origin is not None:
            profile |= {"crs": crs, "transform": rasterio.transform.from_origin(*origin, pixel, pixel)}
        count, height, width = array.shape
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype.name, **profile
        ) as target:
            target.write(array)
        return path

    return write


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DataSettings]:
    """Settings of a data set at ``tmp_path`` with classes ``a`` and ``b``; keywords replace or add keys."""

    def make(**changes: Any) -> DataSettings:
        tree: dict[str, Any] = {"root": str(tmp_path), "classes": [{"name": "a"}, {"name": "b"}]}
        if not {"train", "split"} & set(changes):
            tree["train"] = ["**/images/*"]
        return validate(DataSettings, tree | changes, origin="recipe.yaml")

    return make


@pytest.fixture
def pairs_on_disk(tmp_path: Path, write_png: Callable[..., Path]) -> Callable[..., None]:
    """Write RGB images and index masks (left half class 0, right half 1) under the given names below ``images``."""

    def write(*names: str, size: tuple[int, int] = (40, 48)) -> None:
        labels = np.zeros(size, np.uint8)
        labels[:, size[1] // 2 :] = 1
        for name in names:
            folder, _, stem = name.rpartition("/")
            write_png(tmp_path / folder / "images" / f"{stem}.png", np.dstack([labels * 100 + 50] * 3))
            write_png(tmp_path / folder / "masks" / f"{stem}.png", labels)

    return write
