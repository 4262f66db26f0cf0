from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.windows import Window

from d2ls_fast.data.raster import RasterProfile, read_header, read_image, read_mask, write_label_raster
from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing

PALETTE = [[10, 20, 30], [200, 100, 0], [0, 0, 255]]
PLACE = RasterProfile(rasterio.crs.CRS.from_epsg(32632), rasterio.transform.from_origin(500000, 5000000, 10, 10))


def test_bands_are_read_in_the_order_asked_for(tmp_path, write_tiff):
    image = np.random.default_rng(0).integers(0, 65535, (5, 7, 9), dtype=np.uint16)
    path = write_tiff(tmp_path / "x.tif", image, origin=(100.0, 200.0), nodata=7)
    array, place, nodata = read_image(path, [5, 1, 1])
    assert array.dtype == np.uint16 and (array == image[[4, 0, 0]]).all()
    assert place is not None and place.crs.to_epsg() == 32632 and place.transform.c == 100.0 and nodata == 7
    assert (read_image(path, window=Window(2, 1, 4, 3))[0] == image[:, 1:4, 2:6]).all()


@pytest.mark.parametrize("extension", ["png", "bmp", "jpg", "jp2"])
def test_plain_pictures_are_read_as_rgb_without_a_georeference(tmp_path, extension):
    picture = np.full((20, 30, 3), (250, 128, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / f"x.{extension}")
    array, place, nodata = read_image(tmp_path / f"x.{extension}")
    assert array.shape == (3, 20, 30) and place is None and nodata is None
    assert np.abs(array.astype(int) - picture.transpose(2, 0, 1)).max() <= (0 if extension in ("png", "bmp") else 3)


def test_alpha_is_dropped_unless_asked_for(tmp_path, write_png):
    path = write_png(tmp_path / "x.png", np.dstack([np.full((4, 5), value, np.uint8) for value in (1, 2, 3, 99)]))
    assert read_image(path)[0][:, 0, 0].tolist() == [1, 2, 3]
    assert read_image(path, [4])[0][:, 0, 0].tolist() == [99]
    header = read_header(path)
    assert (header.bands, header.count, header.height, header.width, header.dtype) == ((1, 2, 3), 4, 4, 5, "uint8")


def test_palette_image_reads_as_rgb_and_palette_mask_as_indices(tmp_path):
    write_label_raster(tmp_path / "x.png", np.array([[0, 1], [2, 0]], np.uint8), PALETTE)
    assert read_header(tmp_path / "x.png").bands == (1, 2, 3)
    assert read_image(tmp_path / "x.png", [3, 1])[0].tolist() == [[[30, 0], [255, 30]], [[10, 200], [0, 10]]]
    values, palette, _ = read_mask(tmp_path / "x.png")
    assert values.tolist() == [[0, 1], [2, 0]] and palette is not None and palette[:3].tolist() == PALETTE


def test_label_geotiff_keeps_place_colours_and_nodata(tmp_path):
    labels = np.random.default_rng(1).integers(0, 3, (70, 50), dtype=np.uint8)
    write_label_raster(tmp_path / "new" / "x.tif", labels, PALETTE, PLACE, nodata=255)
    with rasterio.open(tmp_path / "new" / "x.tif") as source:
        assert (source.read(1) == labels).all() and source.crs == PLACE.crs and source.transform == PLACE.transform
        assert source.nodata == 255 and [list(source.colormap(1)[k][:3]) for k in range(3)] == PALETTE
        assert source.profile["tiled"] and source.compression.name == "deflate"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.tif"]


def test_more_than_256_classes_go_into_a_geotiff_only(tmp_path):
    labels = np.array([[0, 300]], np.int16)
    write_label_raster(tmp_path / "x.tif", labels, PALETTE)
    assert read_image(tmp_path / "x.tif")[0].tolist() == [[[0, 300]]]
    with pytest.raises(UserError, match="at most 256 classes"):
        write_label_raster(tmp_path / "x.png", labels, PALETTE)
    with pytest.raises(UserError, match="change the extension"):
        write_label_raster(tmp_path / "x.jpg", labels, PALETTE)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.tif"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x\.tif: cannot be written .*writable folder"):
        write_label_raster(tmp_path / "file" / "x.tif", np.zeros((2, 2), np.uint8), PALETTE)


def test_text_named_png_is_refused_by_name(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    for read in (read_header, read_image, read_mask):
        with pytest.raises(UserError, match=r"notes\.png: not a readable .*replace the file"):
            read(tmp_path / "notes.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp", "jp2"])
def test_truncated_image_is_refused_by_name(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=rf"x\.{extension}: not a readable"):
        read_image(path)


def test_damaged_png_is_refused_by_name(tmp_path, write_png):
    path = write_png(tmp_path / "x.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png: not a readable"):
        read_mask(path)


def test_virtual_data_set_that_points_elsewhere_is_not_opened(tmp_path, write_tiff):
    secret = write_tiff(tmp_path / "secret.tif", np.ones((1, 4, 4), np.uint8))
    (tmp_path / "x.tif").write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(UserError, match=r"x\.tif: not a readable"):
        read_image(tmp_path / "x.tif")


def test_missing_file_and_missing_band(tmp_path, write_tiff):
    with pytest.raises(UserError, match=r"gone\.tif: no such file"):
        read_image(tmp_path / "gone.tif")
    path = write_tiff(tmp_path / "x.tif", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"x\.tif: has 2 band\(s\), band 3 is asked for"):
        read_image(path, [1, 3])
    five: Path = write_tiff(tmp_path / "five.tif", np.zeros((5, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"five\.tif: a mask has one band or is RGB, this one has 5"):
        read_mask(five)
