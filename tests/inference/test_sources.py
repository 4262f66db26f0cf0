"""What a scene's file tells beside its pixels: thumbnail and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from d2ls_fast.inference import sources
from d2ls_fast.inference.sources import ArraySource, open_scene

IMAGE = np.random.default_rng(0).integers(1, 200, (3, 203, 97), dtype=np.uint8)


def write(path: Path, image: np.ndarray = IMAGE, **options: Any) -> Path:
    bands, height, width = image.shape
    place = {"crs": "EPSG:32616", "transform": from_origin(500_000, 4_000_000, 30, 30)}
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=image.dtype, **{**place, **options}
    ) as target:
        target.write(image)
    return path


def averages(factor: int) -> np.ndarray:
    rows, columns = range(0, 203, factor), range(0, 97, factor)
    return np.array([[[band[r : r + factor, c : c + factor].mean() for c in columns] for r in rows] for band in IMAGE])


@pytest.mark.parametrize("part", [64, 2**24])
@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32}])
def test_a_thumbnail_is_the_average_of_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(sources, "PART", part)
    for factor in (1, 5, 300):
        expected = averages(factor)
        with open_scene(write(tmp_path / "a.tif", **options), [1, 2, 3]) as scene:
            for source in (scene, ArraySource(IMAGE)):
                thumbnail, known = source.thumbnail(factor)
                assert thumbnail.shape == expected.shape
                assert known.shape == expected.shape[1:]
                assert np.abs(thumbnail - expected).max() <= 0.51  # GDAL rounds
                assert known.all()


def test_a_thumbnail_knows_what_has_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART", 900)
    image = IMAGE.copy()
    image[:, :100] = 0
    with open_scene(write(tmp_path / "a.tif", image, nodata=0), [1, 2, 3]) as scene:
        known = scene.thumbnail(10)[1]
    assert not known[:10].any()
    assert known[10:].all()


def test_rational_polynomials_place_a_scene(tmp_path: Path) -> None:
    ones = [1.0, *[0.0] * 19]
    rpcs = RPC(0, 1, 0, 1, ones, ones, 0, 1, 0, 1, ones, ones, 0, 1, err_bias=0.5, err_rand=0.25)
    path = write(tmp_path / "a.tif", rpcs=rpcs, crs=None, transform=None)
    with open_scene(path, [1, 2, 3]) as scene:
        assert scene.georeference is not None
        assert list(scene.georeference) == ["rpcs"]
        assert scene.georeference["rpcs"].to_dict() == rpcs.to_dict()
