"""What is written for a scene: placed, coloured, complete, or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mapping_runs
import numpy as np
import pytest
import rasterio
from forked_runs import run_forked
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from d2ls_fast.errors import UserError
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.products import Wanted, tally
from d2ls_fast.inference.scene import map_scene
from d2ls_fast.models.checkpoint import ModelCard

PLACE = {"crs": "EPSG:32616", "transform": from_origin(500_000, 4_000_000, 30, 30)}


def write_tif(path: Path, image: np.ndarray, **options: Any) -> Path:
    bands, height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=image.dtype, **options
    ) as target:
        target.write(image)
    return path


@pytest.fixture
def predictor(pixel_model: Any, card: ModelCard) -> Predictor:
    return Predictor((pixel_model, card), window=64, overlap=8)


def test_a_geotiff_gives_a_geotiff_in_the_same_place(
    tmp_path: Path, predictor: Predictor, make_image: Any, expected_labels: Any, pixel_model: Any, card: ModelCard
) -> None:
    image = make_image(130, 90)
    image[:, :7] = 0
    path = write_tif(tmp_path / "scene.tif", image, nodata=0, **PLACE)
    output = tmp_path / "out"
    output.mkdir()
    result = map_scene(predictor, path, output, Wanted(confidence=True))
    names = ["scene_labels.tif", "scene_confidence.tif", "scene_overlay.png"]
    assert [file.name for file in result.files] == names
    names.append("scene_labels.tif.aux.xml")  # the classes' names, where GDAL looks for them
    assert sorted(file.name for file in output.iterdir()) == sorted(names)
    expected = expected_labels(pixel_model, card, image)
    expected[:7] = 255
    with rasterio.open(output / "scene_labels.tif") as labels:
        assert np.array_equal(labels.read(1), expected)
        assert (labels.crs, labels.transform) == (PLACE["crs"], PLACE["transform"])
        assert (labels.nodata, labels.compression.name, labels.profile["tiled"]) == (255, "deflate", True)
        assert labels.colormap(1)[3] == (255, 0, 0, 255)
        assert labels.tags()["class_2"] == "forest"
    with rasterio.open(output / "scene_confidence.tif") as confidence:
        values = confidence.read(1)
        assert np.isnan(confidence.nodata)
        assert np.isnan(values[:7]).all()
        assert (values[7:] > 0.25).all()
    known = expected[7:]
    assert result.shares == pytest.approx([(known == k).mean() for k in range(4)])
    assert Image.open(output / "scene_overlay.png").height >= 130


def test_a_plain_picture_gives_palette_and_grey_png(
    tmp_path: Path, predictor: Predictor, expected_labels: Any, pixel_model: Any, card: ModelCard
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 50, 4), dtype=np.uint8)
    image[..., 3] = 255
    image[:5, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "photo.png")
    map_scene(predictor, tmp_path / "photo.png", tmp_path, Wanted(confidence=True))
    labels = Image.open(tmp_path / "photo_labels.png")
    expected = expected_labels(pixel_model, card, np.moveaxis(image[..., :3], -1, 0))
    expected[:5] = 255  # transparent
    assert labels.mode == "P"
    assert np.array_equal(np.asarray(labels), expected)
    assert np.array_equal(np.asarray(labels.convert("RGB"))[10, 10], card.palette[expected[10, 10]])
    confidence = np.asarray(Image.open(tmp_path / "photo_confidence.png"))
    assert confidence.dtype == np.uint8
    assert (confidence[:5] == 0).all()
    assert (confidence[5:] > 60).all()


def test_a_palette_picture_is_read_as_rgb(tmp_path: Path, predictor: Predictor) -> None:
    indexed = np.random.default_rng(0).integers(0, 3, (40, 40), dtype=np.uint8)
    colours = np.array([[10, 200, 90], [250, 3, 77], [66, 66, 240]], np.uint8)
    picture = Image.fromarray(indexed)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "indexed.png")
    Image.fromarray(colours[indexed]).save(tmp_path / "rgb.png")
    for name in ("indexed", "rgb"):
        map_scene(predictor, tmp_path / f"{name}.png", tmp_path)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "indexed_labels.png")), np.asarray(Image.open(tmp_path / "rgb_labels.png"))
    )


def test_the_bands_are_taken_in_model_order(
    tmp_path: Path, predictor: Predictor, make_image: Any, expected_labels: Any, pixel_model: Any, card: ModelCard
) -> None:
    image = make_image(40, 40)
    card.bands[:] = [4, 2, 3]
    stored = np.stack([np.zeros_like(image[0]), image[1], image[2], image[0]])
    map_scene(predictor, write_tif(tmp_path / "s.tif", stored, **PLACE), tmp_path, Wanted(overlay=False))
    with rasterio.open(tmp_path / "s_labels.tif") as labels:
        assert np.array_equal(labels.read(1), expected_labels(pixel_model, card, image))
    assert not (tmp_path / "s_overlay.png").exists()


def test_a_mask_band_and_ground_control_points_are_kept(tmp_path: Path, predictor: Predictor, make_image: Any) -> None:
    points = [GroundControlPoint(row, col, 10.0 + col, 50.0 - row) for row, col in ((0, 0), (0, 40), (40, 0))]
    image = make_image(40, 40).astype(np.uint8)
    alpha = np.full((1, 40, 40), 255, np.uint8)
    alpha[:, 20:] = 0
    stored = np.concatenate([image, alpha])
    path = write_tif(tmp_path / "s.tif", stored, photometric="RGB", alpha="YES", gcps=points, crs="EPSG:4326")
    map_scene(predictor, path, tmp_path)
    with rasterio.open(tmp_path / "s_labels.tif") as labels:
        values = labels.read(1)
        assert (values[20:] == 255).all()
        assert (values[:20] < 4).all()
        assert len(labels.gcps[0]) == 3
        assert labels.gcps[1] == "EPSG:4326"


def test_a_band_that_the_model_uses_is_no_mask(
    tmp_path: Path, predictor: Predictor, make_image: Any, card: ModelCard
) -> None:
    """Some cameras' files call the near infrared alpha; water, where it is 0, must not become missing."""
    card.bands[:] = [1, 4, 2]
    image = np.concatenate([make_image(40, 40).astype(np.uint8) | 1, np.zeros((1, 40, 40), np.uint8)])
    path = write_tif(tmp_path / "s.tif", image, photometric="RGB", alpha="YES", **PLACE)
    map_scene(predictor, path, tmp_path)
    with rasterio.open(tmp_path / "s_labels.tif") as labels:
        assert labels.read(1).max() < 4


def test_undeclared_nodata_can_be_named(tmp_path: Path, predictor: Predictor, make_image: Any) -> None:
    image = make_image(40, 40) + 1
    image[:, :, :10] = 0
    map_scene(predictor, write_tif(tmp_path / "s.tif", image, **PLACE), tmp_path, nodata=0)
    with rasterio.open(tmp_path / "s_labels.tif") as labels:
        assert np.array_equal(labels.read(1) == 255, np.arange(40)[None].repeat(40, 0) < 10)


def test_a_large_scene_has_a_shrunken_overlay(
    tmp_path: Path, predictor: Predictor, make_image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "OVERLAY_SIDE", 50)
    for name, image in (("a.tif", make_image(203, 97)), ("b.png", None)):
        if image is not None:
            write_tif(tmp_path / name, image, **PLACE)
        else:
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (203, 97, 3), dtype=np.uint8)).save(
                tmp_path / name
            )
        result = map_scene(predictor, tmp_path / name, tmp_path)
        assert result.overlay_factor == 5
        with Image.open(result.files[-1]) as picture:
            assert picture.height < 203


def test_a_damaged_scene_leaves_nothing(tmp_path: Path, predictor: Predictor, make_image: Any) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(300, 300), **PLACE)
    path.write_bytes(path.read_bytes()[:200_000])
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(UserError, match=r"s\.tif: damaged or cut short"):
        map_scene(predictor, path, output, Wanted(confidence=True))
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("after", [1, 5, 12, 20])
def test_an_interrupted_map_goes_on_to_the_same_bytes(
    after: int, tmp_path: Path, predictor: Predictor, make_image: Any, pixel_model: Any
) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(300, 200), **PLACE)
    wanted = Wanted(confidence=True, probabilities=True, polygons=True)
    whole = map_scene(predictor, path, tmp_path / "whole", wanted)
    output = tmp_path / "out"
    output.mkdir()
    (output / "s_labels.tif").write_text("earlier")

    def interrupt(done: int, total: int) -> None:
        if done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_scene(predictor, path, output, wanted, progress=interrupt)
    assert [file.name for file in output.iterdir() if file.name[0] != "."] == ["s_labels.tif"]
    assert (output / "s_labels.tif").read_text() == "earlier"
    pixel_model.sizes.clear()
    map_scene(predictor, path, output, wanted)
    assert sum(size[0] for size in pixel_model.sizes) <= 24 - (after // 4 - 1) * 4  # 6 rows of 4; one is seen again
    assert {file.name: file.read_bytes() for file in output.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
    }
    assert {file.name for file in whole.files} <= {file.name for file in output.iterdir()}


@pytest.mark.parametrize("change", ["model", "settings", "scene", "restart"])
def test_what_another_map_left_is_not_taken(
    change: str, tmp_path: Path, predictor: Predictor, make_image: Any, pixel_model: Any, card: ModelCard
) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(300, 100), **PLACE)

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_scene(predictor, path, tmp_path, progress=interrupt)
    assert list(tmp_path.glob(".s.partial/*.rows"))
    if change == "model":
        pixel_model.weight.data.neg_()
    elif change == "settings":
        predictor = Predictor((pixel_model, card), window=64, overlap=16)
    elif change == "scene":
        write_tif(path, make_image(300, 100)[::-1], **PLACE)
    map_scene(predictor, path, tmp_path, resume=change != "restart")
    whole = tmp_path / "whole"
    map_scene(predictor, path, whole)
    assert (tmp_path / "s_labels.tif").read_bytes() == (whole / "s_labels.tif").read_bytes()


@pytest.mark.parametrize("moment", ["window", "spool", "products", "rename"])
def test_a_killed_map_goes_on_to_the_same_bytes(moment: str, tmp_path: Path, make_image: Any) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(300, 200), **PLACE)
    assert run_forked(mapping_runs.map_once, path, tmp_path / "whole", "") == [0]
    assert run_forked(mapping_runs.map_once, path, tmp_path / "out", moment) == [-9]
    assert not (tmp_path / "out" / "s_overlay.png").exists() or moment == "rename"
    assert run_forked(mapping_runs.map_once, path, tmp_path / "out", "") == [0]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("height", [40, 300])
def test_processes_map_a_scene_together(height: int, tmp_path: Path, make_image: Any) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(height, 200), **PLACE)
    assert run_forked(mapping_runs.map_once, path, tmp_path / "one", "") == [0]
    assert run_forked(mapping_runs.map_together, path, tmp_path / "two", processes=2) == [0, 0]
    assert {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()
    }


def test_an_unreadable_tile_in_the_middle_leaves_nothing(tmp_path: Path, predictor: Predictor, make_image: Any) -> None:
    path = tmp_path / "s.tif"
    write_tif(path, make_image(512, 128), tiled=True, blockxsize=64, blockysize=64, compress="deflate", **PLACE)
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_0_6", "TIFF", 1))
    content = path.read_bytes()
    path.write_bytes(content[:offset] + bytes(200) + content[offset + 200 :])
    with pytest.raises(UserError, match=r"s\.tif: damaged or cut short") as error:
        map_scene(predictor, path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, make_image: Any) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(300, 200), **PLACE)
    assert run_forked(mapping_runs.map_once, path, tmp_path / "whole", "") == [0]
    assert run_forked(mapping_runs.map_on_full_disk, path, tmp_path / "out", tmp_path / "error") == [0]
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".s.partial"]
    assert re.fullmatch(
        r"\S+s_\w+\.\w+: cannot be written \(.*\); choose .* free space; 6 of 6 rows of windows are kept, "
        r"the same command goes on from there",
        (tmp_path / "error").read_text(),
    )
    assert run_forked(mapping_runs.map_once, path, tmp_path / "out", "") == [0]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
    }


def test_a_file_that_vanishes_is_named(tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(UserError, match=r"gone\.tif: no such file"):
        map_scene(predictor, tmp_path / "gone.tif", tmp_path / "out")


def test_complex_values_are_refused(tmp_path: Path, predictor: Predictor) -> None:
    path = write_tif(tmp_path / "radar.tif", np.zeros((3, 8, 8), np.complex64), **PLACE)
    with pytest.raises(UserError, match=r"radar\.tif: holds complex64 values"):
        map_scene(predictor, path, tmp_path)
