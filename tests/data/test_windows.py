"""Scenes that do not fit into memory are read by windows, and give what they give when read whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from d2ls_fast.data import AugmentSettings, build_datasets, scenes
from d2ls_fast.data.folder import make_pair, pool
from d2ls_fast.data.scenes import SceneInMemory, SceneOnDisk, SceneReader
from d2ls_fast.errors import UserError

TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
PARTS = [(0.0, 0.0, 0.2, 0.17), (0.07, 0.1, 0.35, 0.11), (0.5, 0.55, 0.5, 0.45)]


@pytest.fixture
def scene_files(tmp_path, write_tiff, write_png):
    """``scene_files(nodata, mask suffix)``: a 203 x 301 scene of 4 bands and its mask below ``tmp_path``."""

    def make(nodata: float | None = None, mask: str = ".tif", dtype: str = "uint16") -> None:
        random = np.random.default_rng(0)
        image = random.integers(1, 1000, (4, 203, 301)).astype(dtype)
        labels = random.integers(0, 2, (203, 301)).astype(np.uint8)
        if nodata is not None:
            image[:, 80:140, 90:] = nodata
        write_tiff(tmp_path / "images" / "x.tif", image, nodata=nodata, **TILED)
        if mask == ".png":
            write_png(tmp_path / "masks" / "x.png", labels)
        else:
            write_tiff(tmp_path / "masks" / "x.tif", labels[None], **TILED)

    return make


def view(chosen, gigabytes):
    """The only scene with that much memory."""
    reader = SceneReader(chosen.model_copy(update={"cache_gigabytes": gigabytes}), [3, 1])
    return reader.view(make_pair(chosen, pool(chosen)[0]))


@pytest.mark.parametrize("mask", [".tif", ".png"])
@pytest.mark.parametrize(("nodata", "dtype"), [(None, "uint16"), (0, "uint16"), (np.nan, "float32")])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.61, 1.7])
def test_a_window_is_a_part_of_the_whole(settings, scene_files, mask, nodata, dtype, scale):
    scene_files(nodata, mask, dtype)
    chosen = settings(scale=scale)
    with view(chosen, 0.0) as on_disk, view(chosen, 1.0) as in_memory:
        compare(on_disk, in_memory, round(203 * scale), nodata is not None)


def compare(on_disk, in_memory, size, lacks_data):
    assert isinstance(on_disk, SceneOnDisk) and isinstance(in_memory, SceneInMemory)
    boxes = [(int(top * size), int(left * 301 / 203 * size), int(h * size), int(w * size)) for top, left, h, w in PARTS]
    for box in boxes:
        part, expected = on_disk.read(box), in_memory.read(box)
        assert np.array_equal(part.labels, expected.labels) and np.array_equal(on_disk.labels(box), expected.labels)
        valid = np.ones(box[2:], bool) if expected.valid is None else expected.valid
        assert np.array_equal(np.ones(box[2:], bool) if part.valid is None else part.valid, valid)
        assert part.image.dtype == expected.image.dtype and part.image.shape == (2, *box[2:])
        assert np.allclose(part.image[:, valid], expected.image[:, valid], rtol=1e-5, atol=0)
    if lacks_data:
        assert any((in_memory.read(box).labels == 255).any() for box in boxes)


def test_only_what_a_crop_needs_is_read(settings, tmp_path, write_tiff, monkeypatch):
    (tmp_path / "images").mkdir()
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(0, 0, 1, 1)}
    size = {"height": 40_000, "width": 30_000, "dtype": "uint8", "sparse_ok": True} | TILED | place
    for folder, bands in (("images", 3), ("masks", 1)):
        (tmp_path / folder).mkdir(exist_ok=True)
        with rasterio.open(tmp_path / folder / "x.tif", "w", driver="GTiff", count=bands, **size):
            pass  # no block is written: 1.2 gigapixels of zeros in a small file
    read: list[int] = []

    def spy(source, bands, window):
        read.append(int(window.width * window.height))
        return original(source, bands, window)

    original = scenes.image_pixels
    monkeypatch.setattr(scenes, "image_pixels", spy)
    augment = AugmentSettings(crop=64, scales=[0.5, 2.0], largest_class=1.0)
    splits = build_datasets(settings(normalisation="half", cache_gigabytes=0.1, samples_per_epoch=6), augment)
    torch.manual_seed(0)
    for index in range(6):
        assert splits.train[index]["image"].shape == (3, 64, 64)
    assert sorted(set(read)) == [32**2, 128**2]


def test_training_items_do_not_depend_on_the_memory(settings, scene_files):
    scene_files(nodata=0)
    augment = AugmentSettings(crop=48, largest_class=0.51, sharpen=0.5, mosaic=0.5)
    chosen = settings(samples_per_epoch=12, val=["images/*"], allow_overlap=True, eval_tile=64, train=["images/*"])
    roomy, tight = (build_datasets(chosen.model_copy(update={"cache_gigabytes": g}), augment) for g in (1.0, 0.0))
    assert roomy.mean == pytest.approx(tight.mean) and roomy.std == pytest.approx(tight.std)
    for index in range(12):
        torch.manual_seed(index)
        expected = roomy.train[index]
        torch.manual_seed(index)
        item = tight.train[index]
        assert torch.equal(item["label"], expected["label"])
        assert torch.allclose(item["image"], expected["image"], atol=1e-5)
    for index in range(len(roomy.val)):
        assert torch.equal(tight.val[index]["label"], roomy.val[index]["label"])
        assert torch.allclose(tight.val[index]["image"], roomy.val[index]["image"], atol=1e-5)


def test_a_mask_without_windows_is_decoded_once(settings, tmp_path, scene_files, monkeypatch):
    scene_files(mask=".png")
    chosen = settings(cache_gigabytes=100e-6)  # the mask fits, image and mask together do not
    pair = make_pair(chosen, pool(chosen)[0])
    pairs = [pair, *(replace(pair, mask=Path(shutil.copy(pair.mask, tmp_path / f"{n}.png"))) for n in (2, 3))]
    reader = SceneReader(chosen, [1, 2, 3])
    decoded = []
    original = reader._masks.read
    monkeypatch.setattr(reader._masks, "read", lambda path: decoded.append(path) or original(path))
    for _ in range(3):
        for one in pairs:
            with reader.view(one) as on_disk:
                on_disk.read((13, 21, 70, 33))
    assert len(decoded) == 1 + 3 + 3


def test_an_unknown_value_is_found_where_it_is_read(settings, tmp_path, scene_files, write_tiff):
    scene_files()
    labels = np.zeros((1, 203, 301), np.uint8)
    labels[0, 150:153, 200:210] = 9
    write_tiff(tmp_path / "masks" / "x.tif", labels, **TILED)
    with view(settings(), 0.0) as on_disk:
        on_disk.read((0, 0, 100, 100))
        with pytest.raises(UserError, match=r"x\.tif: value 9 is in 20 pixels"):
            on_disk.read((151, 190, 50, 50))


@pytest.mark.parametrize("damaged", ["images", "masks"])
def test_a_damaged_file_is_named(settings, tmp_path, scene_files, damaged):
    scene_files()
    path = tmp_path / damaged / "x.tif"
    with path.open("r+b") as file:  # the header stays, blocks are overwritten
        file.seek(path.stat().st_size // 4)
        file.write(bytes(path.stat().st_size // 2))
    with pytest.raises(UserError, match=rf"{damaged}/x\.tif: not a readable"), view(settings(), 0.0) as on_disk:
        on_disk.read((0, 0, 203, 301))
