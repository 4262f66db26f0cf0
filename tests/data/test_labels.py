from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from d2ls_fast.data.labels import MaskReader
from d2ls_fast.data.raster import write_label_raster
from d2ls_fast.errors import UserError

RED_BLUE = [{"name": "a", "colour": "#FF0000"}, {"name": "b", "colour": "#0000FF"}]


def test_plain_indices_and_255(settings, tmp_path, write_png):
    path = write_png(tmp_path / "m.png", np.array([[0, 1], [255, 0]], np.uint8))
    labels = MaskReader(settings()).read(path)
    assert labels.dtype == np.uint8 and labels.tolist() == [[0, 1], [255, 0]]


def test_raw_values_are_remapped_and_the_others_ignored(settings, tmp_path, write_png):
    classes = [{"name": "clear", "value": 128}, {"name": "shadow", "value": 64}, {"name": "cloud", "value": [192, 255]}]
    path = write_png(tmp_path / "m.png", np.array([[128, 64, 192, 255, 0]], np.uint8))
    assert MaskReader(settings(classes=classes, ignore_values=[0])).read(path).tolist() == [[0, 1, 2, 2, 255]]


def test_a_class_may_claim_255(settings, tmp_path, write_png):
    path = write_png(tmp_path / "m.png", np.array([[0, 255]], np.uint8))
    classes = [{"name": "a", "value": 0}, {"name": "b", "value": 255}]
    assert MaskReader(settings(classes=classes)).read(path).tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_wide_types_with_nodata(settings, tmp_path, write_tiff, dtype):
    values = np.array([[[1, 2, 9]]], dtype)
    classes = [{"name": "a", "value": 1}, {"name": "b", "value": 2}]
    path = write_tiff(tmp_path / "m.tif", values, nodata=9)
    assert MaskReader(settings(classes=classes)).read(path).tolist() == [[0, 1, 255]]


def test_nan_is_unlabelled(settings, tmp_path, write_tiff):
    path = write_tiff(tmp_path / "m.tif", np.array([[[0.0, np.nan, 1.0]]], np.float32))
    assert MaskReader(settings()).read(path).tolist() == [[0, 255, 1]]


def test_colours(settings, tmp_path, write_png):
    mask = np.array([[[255, 0, 0], [0, 0, 255], [155, 155, 155]]], np.uint8)
    reader = MaskReader(settings(classes=RED_BLUE, ignore_colours=["#9B9B9B"]))
    assert reader.read(write_png(tmp_path / "rgb.png", mask)).tolist() == [[0, 1, 255]]
    rgba = np.dstack([mask, np.full((1, 3), 7, np.uint8)])
    assert reader.read(write_png(tmp_path / "rgba.png", rgba)).tolist() == [[0, 1, 255]]


def test_palette_mode_mask_goes_through_its_colours(settings, tmp_path):
    write_label_raster(tmp_path / "m.png", np.array([[2, 1, 0]], np.uint8), [[155] * 3, [0, 0, 255], [255, 0, 0]])
    declared = {"classes": RED_BLUE, "ignore_colours": ["#9B9B9B"]}
    assert MaskReader(settings(**declared)).read(tmp_path / "m.png").tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match="value 2 is in 1 pixels"):
        MaskReader(settings(**declared, masks="index")).read(tmp_path / "m.png")


def test_palette_mode_mask_is_indices_where_colours_are_not_declared(settings, tmp_path):
    write_label_raster(tmp_path / "m.png", np.array([[1, 0]], np.uint8), [[1, 1, 1], [2, 2, 2]])
    assert MaskReader(settings()).read(tmp_path / "m.png").tolist() == [[1, 0]]


def test_nodata_of_a_palette_geotiff_is_unlabelled(settings, tmp_path):
    write_label_raster(tmp_path / "m.tif", np.array([[1, 0, 255]], np.uint8), [[255, 0, 0], [0, 0, 255]], nodata=255)
    assert MaskReader(settings(classes=RED_BLUE)).read(tmp_path / "m.tif").tolist() == [[1, 0, 255]]


def test_unknown_colour_is_named_with_its_count(settings, tmp_path, write_png):
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[..., 0] = 255
    mask[1, :3] = (18, 52, 86)
    mask[2, 0] = (9, 9, 9)
    path = write_png(tmp_path / "m.png", mask)
    with pytest.raises(
        UserError, match=r"m\.png: colour #123456 is in 3 pixels .*\(and 1 more\).*#FF0000, #0000FF"
    ) as e:
        MaskReader(settings(classes=RED_BLUE)).read(path)
    assert "ignore_colours" in str(e.value)
    assert (MaskReader(settings(classes=RED_BLUE, ignore_unknown=True)).read(path) == 255).sum() == 4


def test_label_out_of_range_is_named_with_its_count(settings, tmp_path, write_png):
    path = write_png(tmp_path / "m.png", np.array([[0, 1, 7, 7]], np.uint8))
    with pytest.raises(
        UserError, match=r"m\.png: value 7 is in 2 pixels but in no class; declared are 0, 1, 255: give"
    ):
        MaskReader(settings()).read(path)
    assert MaskReader(settings(ignore_unknown=True)).read(path).tolist() == [[0, 1, 255, 255]]


def test_the_wrong_kind_of_mask_is_named(settings, tmp_path, write_png):
    rgb = write_png(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8))
    grey = write_png(tmp_path / "grey.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(UserError, match=r"rgb\.png: an RGB mask, but masks: index"):
        MaskReader(settings(masks="index")).read(rgb)
    with pytest.raises(UserError, match=r"rgb\.png: a colour mask, but not every class has a colour"):
        MaskReader(settings()).read(rgb)
    with pytest.raises(UserError, match=r"grey\.png: a single-band mask, but masks: colour"):
        MaskReader(settings(classes=RED_BLUE, masks="colour")).read(grey)


def test_many_threads_may_share_a_reader(settings, tmp_path, write_png):
    mask = write_png(tmp_path / "mask.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    declared = settings(classes=[{"name": "a", "colour": "#00FF00"}, {"name": "b", "colour": "#FF0000"}])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            reader = MaskReader(declared)  # its table of colours is made by the first to need it
            assert all((labels == 1).all() for labels in pool.map(reader.read, [mask] * 8))
