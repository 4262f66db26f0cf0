"""The sample in examples/sample, read as its README says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from d2ls_fast.config import validate
from d2ls_fast.data import AugmentSettings, DataSettings, build_datasets
from d2ls_fast.data.raster import read_header, read_image

SAMPLE = Path(__file__).parents[2] / "examples" / "sample"


@pytest.fixture(scope="module")
def splits():
    recipe = re.search(r"```yaml\n(.*?)```", (SAMPLE / "README.md").read_text(), re.S)
    assert recipe is not None
    tree = yaml.safe_load(recipe.group(1))["data"]
    tree["root"] = str(SAMPLE.parents[1] / tree["root"])
    return build_datasets(validate(DataSettings, tree, origin="README.md"), AugmentSettings(crop=128))


def test_the_held_out_column_has_every_class(splits):
    assert {pair.name[-6:-4] for pair in splits.val.pairs} == {"c1"} and len(splits.train.pairs) == 12
    counts = sum(np.bincount(splits.val[i]["label"].flatten(), minlength=256) for i in range(len(splits.val)))
    assert counts[:3] / counts.sum() == pytest.approx([0.584, 0.344, 0.072], abs=0.001) and counts[255] == 0


def test_training_crops_are_normalised_in_four_bands(splits):
    image = splits.train[0]["image"]
    assert image.shape == (4, 128, 128) and image.abs().mean() < 3.0
    assert splits.mean == pytest.approx([635, 746, 873, 116], abs=1)


def test_cirrus_separates_thin_cloud(splits):
    item = splits.val[1]
    cirrus = item["image"][3]
    assert cirrus[item["label"] == 1].mean() - cirrus[item["label"] == 0].mean() > 0.5


def test_the_scene_to_map_matches_the_tiles_in_bands_and_units():
    path = SAMPLE / "sentinel2-scene.tif"
    header = read_header(path)
    tile = read_header(SAMPLE / "landsat8-cloud" / "images" / "landsat8_r0_c0.tif")
    assert (header.bands, header.dtype) == (tile.bands, tile.dtype) and (header.height, header.width) == (649, 644)
    assert header.georeference is not None and header.georeference.crs.to_epsg() == 32618
    assert header.georeference.transform.a == 30.0
    scene, _, _ = read_image(path)
    assert 600 < np.median(scene[0]) < 900 and np.percentile(scene[3], 99) < 40


def test_the_sample_is_small():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*")) < 5_000_000
