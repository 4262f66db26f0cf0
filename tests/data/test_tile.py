"""Tiles hold what the data set holds, and the recipe that reads them gives the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from published_trees import write_tree

from d2ls_fast.config import validate
from d2ls_fast.data import AugmentSettings, build_datasets
from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.tile import tile_dataset
from d2ls_fast.errors import UserError

CROP = AugmentSettings(crop=32)


@pytest.fixture
def scenes(tmp_path, write_tiff, write_png):
    """Three georeferenced scenes of 5 bands with nodata in two folders; class values 10 and 20, 99 unlabelled."""
    random = np.random.default_rng(0)
    for number, name in enumerate(("a/images/x", "a/images/y", "b/images/x")):
        image = random.integers(1, 3000, (5, 100, 130)).astype(np.uint16)
        image[:, :20, :30] = 0
        labels = random.choice(np.array([10, 20, 99], np.uint8), (100, 130))
        write_tiff(tmp_path / f"{name}.tif", image, origin=(500_000 + 2000 * number, 5_000_000), nodata=0)
        write_png(tmp_path / f"{name.replace('images', 'masks')}.png", labels)
    return {
        "classes": [{"name": "a", "value": 10}, {"name": "b", "value": 20}],
        "ignore_values": [99],
        "train": ["a/images/*"],
        "val": ["b/images/*"],
        "bands": [5, 2],
    }


def tiled(chosen: DataSettings, folder, *arguments, **options):
    """The data sets before and after tiling, and the new settings."""
    group = tile_dataset(chosen, CROP, folder, *arguments, **options)
    after = validate(DataSettings, group, "recipe.yaml")
    return build_datasets(chosen, CROP), build_datasets(after, CROP), after


@pytest.mark.parametrize("eval_tile", [None, 64])
def test_the_tiles_read_as_the_data_set_does(settings, scenes, tmp_path, eval_tile):
    before, after, group = tiled(settings(**scenes, eval_tile=eval_tile), tmp_path / "tiles", 64, 16)
    assert (after.bands, after.mean, after.std) == ([5, 2], before.mean, before.std)
    assert len(after.train) == len(before.train) and [entry.name for entry in group.classes] == ["a", "b"]
    expected, found = ([splits.val[index] for index in range(len(splits.val))] for splits in (before, after))
    assert len(found) == (1 if eval_tile is None else 6)
    for item in expected:
        assert any(torch.equal(item["image"], other["image"]) for other in found)
        assert any(torch.equal(item["label"], other["label"]) for other in found)
    assert after.train[0]["image"].shape == (2, 32, 32)


def test_training_tiles_cover_the_images_in_place(settings, scenes, tmp_path):
    seen: list[tuple[int, int]] = []
    chosen = settings(**scenes)
    tile_dataset(chosen, CROP, tmp_path / "tiles", 64, 16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 13) for number in range(1, 14)]  # 2 x 3 of each training image, one whole for validation
    with rasterio.open(tmp_path / "a/images/y.tif") as source:
        whole, where = source.read(), source.transform
    labels = np.asarray(Image.open(tmp_path / "a/masks/y.png"))
    covered = np.zeros((100, 130), bool)
    for path in (tmp_path / "tiles/train/a/images/tile_images").glob("y_*.tif"):
        with rasterio.open(path) as tile:
            assert tile.shape == (64, 64) and tile.crs == rasterio.CRS.from_epsg(32632) and tile.nodata == 0
            left, top = (round(value) for value in ~where * (tile.transform * (0, 0)))
            part = np.s_[top : top + 64, left : left + 64]
            assert np.array_equal(tile.read(), whole[(slice(None), *part)]) and not tile.transform.is_identity
        mask = np.asarray(Image.open(str(path).replace("tile_images", "tile_masks").replace(".tif", ".png")))
        has_data = (whole[[4, 1]] != 0).any(axis=0)[part]
        table = {10: 0, 20: 1, 99: 255}
        assert np.array_equal(mask, np.where(has_data, np.vectorize(table.get)(labels[part]), 255))
        covered[part] = True
    assert covered.all()


def test_factors_of_single_images_stay(settings, scenes, tmp_path):
    chosen = settings(**scenes, scale=0.5, scales={"a/images/y*": 0.8}, eval_tile=32)
    _, after, group = tiled(chosen, tmp_path / "tiles", 64)
    factors = {pair.name: pair.scale for pair in after.train.pairs}
    assert {scale for name, scale in factors.items() if "/y_" in name} == {0.8}
    assert {scale for name, scale in factors.items() if "/x_" in name} == {0.5} and len(factors) == 12
    assert len(after.val.pairs) == 1 and group.eval_tile == 32  # resampled: left whole, cut as it is read


def test_a_published_data_set_keeps_its_labels(tmp_path):
    tree = {"dataset": "vaihingen", "root": str(write_tree("vaihingen", tmp_path / "data")), "eval_tile": 48}
    before, after, group = tiled(validate(DataSettings, tree, "recipe.yaml"), tmp_path / "tiles", 64)
    assert group.dataset == "folder" and after.classes == before.classes and after.mean == before.mean
    assert len(after.test) == len(before.test)

    def counts(items):
        return sum(torch.bincount(items[index]["label"].flatten(), minlength=256) for index in range(len(items)))

    assert torch.equal(counts(before.val), counts(after.val))  # eroded borders without label, too


def test_pictures_become_png(settings, tmp_path, pairs_on_disk):
    pairs_on_disk("x", "y", size=(70, 90))
    chosen = settings(train=["images/x*"], val=["images/y*"], mean=[1, 2, 3], std=[4, 5, 6])
    before, after, _ = tiled(chosen, tmp_path / "tiles", 64, suffix=".png")
    assert torch.equal(before.val[0]["image"], after.val[0]["image"])
    assert torch.equal(before.val[0]["label"], after.val[0]["label"])
    assert {path.suffix for path in (tmp_path / "tiles").rglob("*.*")} == {".png"}


def test_what_cannot_be_tiled_is_refused(settings, scenes, tmp_path, pairs_on_disk, write_tiff):
    with pytest.raises(UserError, match=r"x\.tif: 5 band\(s\) of uint16, nodata 0\.0: a PNG holds"):
        tile_dataset(settings(**scenes), CROP, tmp_path / "tiles", suffix=".png")
    (tmp_path / "tiles").write_text("")
    with pytest.raises(UserError, match=r"tiles.*cannot be written"):
        tile_dataset(settings(**scenes), CROP, tmp_path / "tiles")
    pairs_on_disk("c/x")
    write_tiff(tmp_path / "c/images/x.tif", np.ones((3, 40, 48), np.uint8))
    with pytest.raises(UserError, match=r"c/images/x\.tif: c/images/x\.png has the same stem"):
        tile_dataset(settings(train=["c/images/*"]), CROP, tmp_path / "others")
    assert not (tmp_path / "others").exists()
