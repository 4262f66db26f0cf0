"""Polygons as a geographic information system reads them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from d2ls_fast.inference.products import geopackage
from d2ls_fast.inference.products.geopackage import GeoPackageWriter
from d2ls_fast.models.checkpoint import ModelCard

Labels = NDArray[np.uint8]
ROTATED = Affine(1.2, 1.6, 1000.0, 1.6, -1.2, 2000.0)  # pixels of 2 m, turned


@pytest.fixture
def write(tmp_path: Path, card: ModelCard) -> Callable[..., Path]:
    """``write(labels, transform, crs, smallest_area=0, name="map.gpkg", strip=13)``."""

    def write(
        labels: Labels, transform: Affine, crs: str | None, smallest: float = 0, name: str = "map.gpkg", strip: int = 13
    ) -> Path:
        path = tmp_path / name
        with GeoPackageWriter(path, labels.shape[1], card, transform, crs, smallest, {"model": "d2ls"}) as writer:
            for top in range(0, len(labels), strip):
                writer.write(labels[top : top + strip])
            writer.finish()
        return path

    return write


def read(path: Path) -> tuple[dict[str, Any], NDArray[np.object_], dict[str, NDArray[Any]]]:
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


def test_every_area_is_a_placed_polygon_with_its_class(
    write: Callable[..., Path], full_map: Any, card: ModelCard
) -> None:
    labels = full_map(90, 70).labels
    meta, polygons, fields = read(write(labels, ROTATED, "EPSG:32616"))
    assert (meta["crs"], meta["geometry_type"]) == ("EPSG:32616", "Polygon")
    assert pyogrio.read_info(write(labels, ROTATED, None, name="n.gpkg"))["layer_metadata"] == {"model": "d2ls"}
    assert shapely.is_valid(polygons).all()
    painted = rasterize(zip(polygons, fields["class"], strict=True), labels.shape, 255, transform=ROTATED)
    assert np.array_equal(painted, labels)
    assert fields["area"] == pytest.approx(shapely.area(polygons))
    assert fields["area"] == pytest.approx(fields["pixels"] * 4.0)
    assert fields["pixels"].sum() == (labels != 255).sum()
    for value in range(4):
        own = fields["class"] == value
        assert set(fields["name"][own]) == {card.classes[value]}
        assert set(fields["colour"][own]) == {"#{:02X}{:02X}{:02X}".format(*card.palette[value])}


def test_small_areas_are_left_out(write: Callable[..., Path], full_map: Any) -> None:
    labels = full_map(60, 50).labels
    _, every, _ = read(write(labels, ROTATED, None))
    _, large, fields = read(write(labels, ROTATED, None, 40.0, "large.gpkg"))
    assert fields["area"].min() >= 40.0
    assert len(large) == (shapely.area(every) > 40.0 - 1e-6).sum()
    assert 0 < len(large) < len(every)


def test_without_coordinates_polygons_are_in_pixels(write: Callable[..., Path]) -> None:
    labels = np.full((4, 6), 255, np.uint8)
    labels[1:3, 2:6] = 1
    meta, polygons, fields = read(write(labels, Affine.identity(), None))
    assert meta["crs"] is None
    assert polygons[0].bounds == (2, 1, 6, 3)
    assert fields["area"].tolist() == [8.0]


def test_an_empty_map_gives_an_empty_layer(write: Callable[..., Path]) -> None:
    meta, polygons, _ = read(write(np.full((9, 9), 255, np.uint8), ROTATED, "EPSG:32616"))
    assert len(polygons) == 0
    assert (meta["crs"], meta["fields"].tolist()) == ("EPSG:32616", ["class", "name", "colour", "area", "pixels"])


def test_the_same_map_gives_the_same_bytes_in_whatever_batches_and_strips_it_comes(
    write: Callable[..., Path], full_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geopackage, "BATCH", 20)
    monkeypatch.setattr(geopackage, "STRIP_PIXELS", 50 * 8)
    labels = full_map(64, 50).labels
    first = write(labels, ROTATED, "EPSG:32616", name="a.gpkg", strip=64)
    second = write(labels, ROTATED, "EPSG:32616", name="b.gpkg", strip=5)
    assert first.read_bytes() == second.read_bytes()
    assert pyogrio.read_info(first)["features"] > 40


def test_a_lost_spatial_index_is_noticed(card: ModelCard, tmp_path: Path, full_map: Any) -> None:
    path = tmp_path / "map.gpkg"
    with GeoPackageWriter(path, 50, card, ROTATED, None) as writer:
        writer.write(full_map(40, 50).labels)
        writer.finish()
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM rtree_map_geom_node WHERE nodeno > 0")
        with pytest.raises(OSError, match="not all of it reached the disk"):
            writer._check()
