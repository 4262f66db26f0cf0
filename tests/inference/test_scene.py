"""What is written for a scene: placed, coloured, complete, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from d2ls_fast.errors import UserError
from d2ls_fast.inference import scene as scene_module
from d2ls_fast.inference.predictor import Predictor
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
    result = map_scene(predictor, path, output, confidence=True)
    names = ["scene_labels.tif", "scene_confidence.tif", "scene_overlay.png"]
    assert [file.name for file in result.files] == names
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
    map_scene(predictor, tmp_path / "photo.png", tmp_path, confidence=True)
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
    map_scene(predictor, write_tif(tmp_path / "s.tif", stored, **PLACE), tmp_path, with_overlay=False)
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
    monkeypatch.setattr(scene_module, "OVERLAY_SIDE", 50)
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
        map_scene(predictor, path, output, confidence=True)
    assert list(output.iterdir()) == []


def test_an_interruption_leaves_nothing_and_keeps_the_earlier_map(
    tmp_path: Path, predictor: Predictor, make_image: Any
) -> None:
    path = write_tif(tmp_path / "s.tif", make_image(300, 100), **PLACE)
    output = tmp_path / "out"
    output.mkdir()
    (output / "s_labels.tif").write_text("earlier")

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_scene(predictor, path, output, progress=interrupt)
    assert [file.name for file in output.iterdir()] == ["s_labels.tif"]
    assert (output / "s_labels.tif").read_text() == "earlier"


def test_complex_values_are_refused(tmp_path: Path, predictor: Predictor) -> None:
    path = write_tif(tmp_path / "radar.tif", np.zeros((3, 8, 8), np.complex64), **PLACE)
    with pytest.raises(UserError, match=r"radar\.tif: holds complex64 values"):
        map_scene(predictor, path, tmp_path)
