"""Each published data set, read from its layout as published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_trees import POTSDAM_TEST, SIZE, VAIHINGEN_TEST, coloured, indexed, save, stripes, write_tree

from d2ls_fast.config import validate
from d2ls_fast.data import AugmentSettings, DataSettings, build_datasets
from d2ls_fast.data.labels import MaskReader
from d2ls_fast.data.published import PUBLISHED
from d2ls_fast.data.splits import split_pairs
from d2ls_fast.errors import UserError

NAMES = list(PUBLISHED)
ERODED = ("potsdam", "vaihingen")
COLOURED = {"uavid": "uavid", "potsdam": "isprs", "vaihingen": "isprs", "isaid": "isaid"}
PLACES = {  # an image and its mask, in training
    "loveda": ("Train/Rural/images_png/2.png", "Train/Rural/masks_png/2.png"),
    "uavid": ("uavid_train/seq10/Images/000100.png", "uavid_train/seq10/Labels/000100.png"),
    "potsdam": ("2_Ortho_RGB/top_potsdam_3_11_RGB.tif", "5_Labels_all/top_potsdam_3_11_label.tif"),
    "vaihingen": ("top/top_mosaic_09cm_area7.tif", "gts_for_participants/top_mosaic_09cm_area7.tif"),
    "isaid": ("train/images/P0002.png", "train/images/P0002_instance_color_RGB.png"),
    "cloud": ("img_dir/train/train_1.png", "ann_dir/train/train_1.png"),
    "grass": ("img_dir/train/train_1.tif", "ann_dir/train/train_1.png"),
}
# images of train, val and test under the honest and the paper's protocol
SPLITS = {
    "loveda": ((4, 2, 0), (6, 2, 0)),
    "uavid": ((4, 2, 0), (6, 2, 0)),
    "potsdam": ((19, 4, 14), (23, 14, 14)),
    "vaihingen": ((13, 3, 17), (16, 17, 17)),
    "isaid": ((2, 1, 0), (2, 1, 0)),
    "cloud": ((2, 2, 2), (4, 2, 2)),
    "grass": ((2, 2, 0), (2, 2, 0)),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_tree(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture
def tree(tmp_path: Path, trees: dict[str, Path]):
    """A copy of a tree that a test may spoil."""
    return lambda name: Path(shutil.copytree(trees[name], tmp_path / name))


def read(name: str, root: Path, **changes: Any) -> DataSettings:
    return validate(DataSettings, {"dataset": name, "root": str(root)} | changes, origin="recipe.yaml")


def fails(settings: DataSettings, pattern: str) -> None:
    """Every pair read and labelled: refused in one line."""
    with pytest.raises(UserError, match=pattern) as caught:
        masks = MaskReader(settings)
        for pair in split_pairs(settings).all:
            masks.read(pair.mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["honest", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_the_splits_follow_the_protocol(name, protocol, trees):
    split = split_pairs(read(name, trees[name]).under(protocol))
    assert (len(split.train), len(split.val), len(split.test)) == SPLITS[name][protocol == "paper"]
    trained, held_out = {pair.name for pair in split.train}, {pair.name for pair in split.val + split.test}
    if protocol == "honest":
        assert not trained & held_out and not {p.name for p in split.val} & {p.name for p in split.test}
    assert all(pair.size == SIZE for pair in split.all)


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_read_as_published(name, trees):
    data = build_datasets(read(name, trees[name]), AugmentSettings(crop=32))
    item = data.val[0]
    label = item["label"][: SIZE[0], : SIZE[1]].numpy()
    expected = stripes(len(data.classes))
    if name in ("uavid", "isaid"):
        expected[0] = 0  # these have no way to say "no label"
    np.testing.assert_array_equal(label, expected)
    assert (item["label"][SIZE[0] :] == 255).all() and (item["label"][:, SIZE[1] :] == 255).all()
    crop = data.train[0]
    assert crop["image"].shape == (3, 32, 32) and set(crop["label"].unique().tolist()) <= {
        *range(len(data.classes)),
        255,
    }


@pytest.mark.parametrize("name", ERODED)
def test_truth_is_eroded_for_scoring_only(name, trees):
    def borders(**changes: Any) -> tuple[bool, bool, bool]:
        settings = read(name, trees[name], **changes)
        masks, split = MaskReader(settings), split_pairs(settings)
        first = [masks.read(pairs[0].mask)[0] for pairs in (split.train, split.val, split.test)]
        return tuple(bool((row == 255).all()) for row in first)  # type: ignore[return-value]

    assert borders() == (False, True, True)
    assert borders(eroded=False) == (False, False, False)


def test_area_9_and_the_faulty_tile_are_left_out(trees):
    vaihingen, potsdam = (split_pairs(read(name, trees[name]).under("paper")) for name in ("vaihingen", "potsdam"))
    assert not [pair for pair in vaihingen.all if pair.name.endswith("area9.tif")]
    assert not [pair for pair in potsdam.all if "7_10" in pair.name]
    everything = split_pairs(read("potsdam", trees["potsdam"], leave_out=[]).under("paper"))
    assert len(everything.train) == 24 and [pair for pair in everything.train if "7_10" in pair.name]


def test_test_tiles_are_the_published_ones(trees):
    for name, ids, form in (
        ("potsdam", POTSDAM_TEST, "2_Ortho_RGB/top_potsdam_{}_RGB.tif"),
        ("vaihingen", VAIHINGEN_TEST, "top/top_mosaic_09cm_area{}.tif"),
    ):
        assert {pair.name for pair in split_pairs(read(name, trees[name])).test} == {form.format(id) for id in ids}


@pytest.mark.parametrize(("variant", "folder", "bands"), [("irrg", "3_Ortho_IRRG", 3), ("rgbir", "4_Ortho_RGBIR", 4)])
def test_potsdam_has_other_bands(variant, folder, bands, trees):
    data = build_datasets(read("potsdam", trees["potsdam"], variant=variant), AugmentSettings(crop=32))
    assert data.train.pairs[0].name.startswith(folder) and data.val[0]["image"].shape[0] == bands


def test_cloud_greys_have_no_fill(tree):
    root = tree("cloud")
    for mask in root.glob("ann_dir/*/*.png"):
        save(mask, indexed((0, 85, 170, 255), 0, SIZE))
    data = build_datasets(read("cloud", root, variant="grey"))
    expected = stripes(4)
    expected[0] = 0
    np.testing.assert_array_equal(data.val[0]["label"], expected)
    fails(read("cloud", root), r"value (85|170) is in \d+ pixels but in no class \(and 1 more\)")


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_or_colour_is_named_with_its_count(name, tree):
    root = tree(name)
    mask = root / PLACES[name][1]
    if name in COLOURED:
        pixels = coloured(COLOURED[name], None, SIZE)
        pixels[4:6, :3] = (1, 2, 3)
        what = "colour #010203"
    else:
        pixels = indexed(range(1, 5) if name != "cloud" else (128, 64, 192, 255), 0, SIZE)
        pixels[4:6, :3] = 77
        what = "value 77"
    save(mask, pixels)
    fails(read(name, root), f"{mask.name}: {what} is in 6 pixels but in no class")


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_mask_is_named(name, tree):
    root = tree(name)
    image, mask = PLACES[name]
    (root / mask).unlink()
    fails(read(name, root), rf"{Path(image).name}: image without a mask \(1 of \d+ in .* train have none\)")


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_without_image_is_named(name, tree):
    root = tree(name)
    image, mask = PLACES[name]
    (root / image).unlink()
    fails(read(name, root), rf"{Path(mask).name}: mask without an image \(1 of \d+ in .* train have none\)")


@pytest.mark.parametrize("name", NAMES)
def test_differing_sizes_are_named(name, tree):
    root = tree(name)
    mask = root / PLACES[name][1]
    save(mask, np.zeros((SIZE[0] + 1, SIZE[1], 3), np.uint8))
    fails(read(name, root), f"{mask.name}: mask is 41x64, its image .* is 40x64")


@pytest.mark.parametrize("name", NAMES)
def test_another_folder_is_refused_with_the_layout(name, tmp_path):
    fails(read(name, tmp_path), "nothing of .* here; data.root must be the folder that holds")


@pytest.mark.parametrize("name", ERODED)
def test_a_missing_tile_is_named(name, tree):
    root = tree(name)
    for part in PLACES[name]:
        (root / part).unlink()
    tile = "3_11" if name == "potsdam" else "7"
    fails(
        read(name, root), rf"tile {tile} of ISPRS .* train is not here \(1 of \d+ are missing\).*leave_out=\['{tile}'\]"
    )
    left_out = [tile, "7_10"] if name == "potsdam" else [tile]
    assert len(split_pairs(read(name, root, leave_out=left_out)).train) == SPLITS[name][0][0] - 1


def test_packed_isaid_says_what_to_unpack(tree):
    root = tree("isaid")
    shutil.rmtree(root / "train")
    (root / "train" / "images").mkdir(parents=True)
    for part in (1, 2):
        (root / "train" / "images" / f"part{part}.zip").write_bytes(b"PK")
    fails(read("isaid", root), r"part1.zip: still packed \(2 archive\(s\).*unzip part1.zip")


def test_isaid_masks_may_lie_elsewhere_in_the_subset(tree):
    root = tree("isaid")
    for mask in list(root.glob("train/images/*_instance_*")):
        place = root / "train" / "Semantic_masks" / "images" / mask.name
        place.parent.mkdir(parents=True, exist_ok=True)
        mask.rename(place)
    assert len(split_pairs(read("isaid", root)).train) == 2


def test_panchromatic_images_of_isaid_are_read_as_grey_rgb(tree):
    root = tree("isaid")
    grey = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
    for image in root.glob("*/images/P000[03].png"):
        save(image, grey)
    for cached in (0.0, 1.0):
        data = build_datasets(read("isaid", root, cache_gigabytes=cached, mean=[0.0] * 3, std=[1.0] * 3))
        np.testing.assert_array_equal(data.val[0]["image"][:, : SIZE[0], : SIZE[1]], np.stack([grey] * 3))
    fails_to_build = read("isaid", root, grey_as_rgb=False)
    with pytest.raises(UserError, match=r"P0000.png: has 1 band\(s\), data.bands asks for band 3"):
        build_datasets(fails_to_build)


@pytest.mark.parametrize(
    ("name", "changes", "pattern"),
    [
        ("loveda", {"variant": "grey"}, "LoveDA has no variant 'grey'; its variants: none"),
        ("potsdam", {"variant": "rgbi"}, "no variant 'rgbi'; its variants: rgb, irrg, rgbir"),
        ("cloud", {"eroded": True}, "has no eroded masks"),
        ("uavid", {"split": {"val": 0.1}}, "split is for dataset: folder"),
        ("uavid", {"train": ["*"]}, "train is for dataset: folder"),
        ("grass", {"geoseg_compat": True}, "geoseg_compat reproduces a fault with dataset: potsdam or vaihingen"),
        ("potsdam", {"leave_out": [710]}, "identifiers in quotes"),
        ("lovada", {}, "loveda"),
    ],
)
def test_keys_that_do_not_fit_are_refused(name, changes, pattern, tmp_path):
    with pytest.raises(UserError, match=pattern):
        read(name, tmp_path, **changes)


def test_keys_of_published_data_sets_are_refused_for_a_folder(tmp_path):
    for changes in ({"variant": "rgb"}, {"eroded": True}, {"leave_out": ["1"]}):
        with pytest.raises(UserError, match="is for published data sets; set dataset: loveda"):
            validate(
                DataSettings,
                {"root": str(tmp_path), "split": {"val": 0.2}, "classes": [{"name": "a"}]} | changes,
                origin="recipe.yaml",
            )


def test_an_unknown_identifier_to_leave_out_is_named(trees):
    fails(read("loveda", trees["loveda"], leave_out=["17x"]), "data.leave_out: LoveDA has no image '17x'")
    assert len(split_pairs(read("loveda", trees["loveda"], leave_out=["0", "4"])).all) == 4


@pytest.mark.parametrize("name", NAMES)
def test_settings_read_back_as_they_were_written(name, trees):
    settings = read(name, trees[name])
    assert read(**settings.model_dump(mode="json", exclude_none=True), name=name) == settings
