"""All products of a map: complete, placed, the same every time, or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from PIL import Image, PngImagePlugin
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from d2ls_fast.errors import UserError
from d2ls_fast.inference.products import MapRows, Products, Wanted, tally, write_products
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard

Make = Callable[..., Products]
EVERYTHING = {"confidence": True, "probabilities": True, "polygons": True}


@pytest.mark.parametrize("cog", [False, True])
def test_a_placed_scene_gives_placed_products(
    tmp_path: Path, make_products: Make, full_map: Any, place: dict[str, Any], card: ModelCard, cog: bool
) -> None:
    full = full_map(600, 260)
    products = make_products(full, place, **EVERYTHING, cog=cog)
    names = ["labels.tif", "confidence.tif", "probabilities.tif", "polygons.gpkg", "overlay.png"]
    assert [file.name for file in products.files] == [f"scene_{name}" for name in names]
    listed = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert listed == sorted(["scene_labels.tif.aux.xml", *(file.name for file in products.files)])
    assert products.shares == pytest.approx([(full.labels[full.known] == value).mean() for value in range(4)])
    assert products.overlay_factor == 1
    labels, confidence, probabilities, polygons, overlay = products.files
    with rasterio.open(labels) as raster:
        assert np.array_equal(raster.read(1), full.labels)
        assert (raster.crs, raster.transform, raster.nodata) == (place["crs"], place["transform"], 255)
        assert [raster.colormap(1)[value][:3] for value in range(4)] == [tuple(colour) for colour in card.palette]
        assert raster.colormap(1)[255][3] == 0
        assert {"class_2": "forest", "model": "d2ls", "checkpoint": "abc"}.items() <= raster.tags().items()
    with rasterio.open(confidence) as raster:
        assert np.array_equal(raster.read(1), full.confidence, equal_nan=True)
        assert np.isnan(raster.nodata)
        assert raster.tags()["model"] == "d2ls"
    with rasterio.open(probabilities) as raster:
        assert np.array_equal(raster.read(), full.probabilities)
        assert np.array_equal(raster.dataset_mask() > 0, full.known)
        assert (list(raster.descriptions), raster.scales) == (card.classes, (1 / 255,) * 4)
    info = pyogrio.read_info(polygons)
    assert (info["crs"], info["layer_metadata"]["model"]) == ("EPSG:32616", "d2ls")
    bounds = rasterio.transform.array_bounds(600, 260, place["transform"])
    assert info["total_bounds"] == pytest.approx(bounds)
    assert Image.open(overlay).height == 600


def test_gis_programs_find_the_class_names(
    make_products: Make, full_map: Any, place: dict[str, Any], card: ModelCard, tmp_path: Path
) -> None:
    """GDAL keeps category names, which it hands on when it copies a raster, for instance into a virtual one."""
    card.classes[1] = "field & <path>"
    labels = make_products(full_map(40, 30), place).files[0]
    rasterio.shutil.copy(labels, tmp_path / "copy.vrt", driver="VRT")
    categories = (tmp_path / "copy.vrt").read_text().split("<CategoryNames>")[1].split("</CategoryNames>")[0]
    assert [line.strip() for line in categories.split("\n") if line.strip()] == [
        "<Category>water</Category>",
        "<Category>field &amp; &lt;path&gt;</Category>",
        "<Category>forest</Category>",
        "<Category>town</Category>",
    ]


def test_a_plain_picture_gives_pictures(make_products: Make, full_map: Any, card: ModelCard) -> None:
    full = full_map(90, 70)
    files = make_products(full, None, **EVERYTHING).files
    names = ["labels.png", "confidence.png", "probabilities.tif", "polygons.gpkg", "overlay.png"]
    assert [file.name for file in files] == [f"scene_{name}" for name in names]
    assert len(list(files[0].parent.iterdir())) == 5
    with Image.open(files[0]) as labels:
        assert isinstance(labels, PngImagePlugin.PngImageFile)
        assert labels.text["model"] == "d2ls"
        assert np.array_equal(np.asarray(labels), full.labels)
        row, column = np.argwhere(full.known)[0]
        assert list(np.asarray(labels.convert("RGB"))[row, column]) == card.palette[full.labels[row, column]]
    grey = np.asarray(Image.open(files[1]))
    assert np.array_equal(grey, (np.nan_to_num(full.confidence) * 255).round())
    with rasterio.open(files[2]) as raster:
        assert np.array_equal(raster.read(), full.probabilities)
    assert pyogrio.read_info(files[3])["total_bounds"] == (0, 0, 70, 90)


def test_control_points_and_rational_polynomials_are_kept(make_products: Make, full_map: Any) -> None:
    points = [GroundControlPoint(row, col, 10.0 + col, 50.0 - row) for row, col in ((0, 0), (0, 40), (40, 0))]
    ones = [1.0, *[0.0] * 19]
    rpcs = RPC(0, 1, 0, 1, ones, ones, 0, 1, 0, 1, ones, ones, 0, 1, err_bias=0.5, err_rand=0.25)
    for place in ({"gcps": points, "crs": "EPSG:4326"}, {"rpcs": rpcs}):
        for cog in (False, True):
            files = make_products(full_map(40, 40), place, polygons=True, cog=cog).files
            with rasterio.open(files[0]) as labels:
                if "rpcs" in place:
                    assert labels.rpcs is not None
                    assert labels.rpcs.to_dict() == rpcs.to_dict()
                else:
                    assert [(p.row, p.col, p.x, p.y) for p in labels.gcps[0]] == [
                        (p.row, p.col, p.x, p.y) for p in points
                    ]
                    assert labels.gcps[1] == "EPSG:4326"
            assert pyogrio.read_info(files[1])["total_bounds"] == (0, 0, 40, 40)  # pixels


@pytest.mark.parametrize("wanted", [EVERYTHING, {**EVERYTHING, "cog": True}])
def test_the_same_map_gives_the_same_bytes(
    make_products: Make, full_map: Any, place: dict[str, Any], wanted: dict[str, bool]
) -> None:
    full = full_map(150, 90)
    for where in (place, None):
        first = make_products(full, where, "first", 37, **wanted).files
        second = make_products(full, where, "second", 64, **wanted).files
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_large_scene_has_a_shrunken_overlay(
    make_products: Make, full_map: Any, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "OVERLAY_SIDE", 50)
    products = make_products(full_map(203, 97), place)
    assert products.overlay_factor == 5
    with Image.open(products.files[-1]) as picture:
        assert picture.height < 203


def test_an_interruption_leaves_nothing_and_keeps_the_earlier_map(
    tmp_path: Path, full_map: Any, card: ModelCard, place: dict[str, Any]
) -> None:
    full = full_map(90, 70)
    output = tmp_path / "out"
    output.mkdir()
    (output / "scene_labels.tif").write_text("earlier")
    source = ArraySource(np.stack([full.labels] * 3), full.known, place)

    def interrupted() -> Iterator[MapRows]:
        yield from list(full.rows())[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_products(source, interrupted(), card, Path("scene.tif"), output, Wanted(**EVERYTHING, cog=True))
    assert [file.name for file in output.iterdir()] == ["scene_labels.tif"]
    assert (output / "scene_labels.tif").read_text() == "earlier"


def test_rows_must_be_the_whole_map(tmp_path: Path, full_map: Any, card: ModelCard, place: dict[str, Any]) -> None:
    full = full_map(90, 70)
    source = ArraySource(np.stack([full.labels] * 3), full.known, place)
    rows = list(full.rows())
    for wrong in (rows[:-1], rows[1:], [rows[0], *rows]):
        with pytest.raises(ValueError, match=r"of the map|the map has"):
            write_products(source, wrong, card, Path("scene.tif"), tmp_path, Wanted())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(make_products: Make, full_map: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out.*cannot be written"):
        make_products(full_map(20, 20), None)
