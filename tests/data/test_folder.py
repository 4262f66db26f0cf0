from __future__ import annotations

import numpy as np
import pytest

from d2ls_fast.data import build_datasets
from d2ls_fast.data.folder import natural_key
from d2ls_fast.errors import UserError


def names(items):
    return [pair.name for pair in items.pairs]


def test_natural_order():
    assert sorted(["p10", "p9", "a/p2", "p"], key=natural_key) == ["a/p2", "p", "p9", "p10"]


def test_images_directly_below_root(settings, pairs_on_disk):
    pairs_on_disk("x2", "x10")
    assert names(build_datasets(settings()).train) == ["images/x2.png", "images/x10.png"]


def test_the_last_folder_of_that_name_is_replaced(settings, pairs_on_disk):
    pairs_on_disk("images/t1/x")
    train = build_datasets(settings(train=["images/t1/images/*"])).train
    assert train.pairs[0].mask.parts[-4:] == ("images", "t1", "masks", "x.png")


def test_split_folders(settings, pairs_on_disk):
    pairs_on_disk("train/x", "val/y")
    splits = build_datasets(settings(train=["train/images/*"], val=["val/images/*"]))
    assert names(splits.train) == ["train/images/x.png"] and names(splits.val) == ["val/images/y.png"]


def test_images_above_the_split_folder_and_other_extensions(settings, tmp_path, write_png, write_tiff):
    write_png(tmp_path / "images" / "train" / "x.jpg", np.zeros((40, 40, 3), np.uint8))
    write_tiff(tmp_path / "masks" / "train" / "x.tif", np.zeros((1, 40, 40), np.uint8))
    assert names(build_datasets(settings(train=["images/**/*"])).train) == ["images/train/x.jpg"]


def test_suffixes_and_folder_names(settings, tmp_path, write_png):
    write_png(tmp_path / "2_Ortho" / "top_1_RGB.png", np.zeros((40, 40, 3), np.uint8))
    write_png(tmp_path / "5_Labels" / "top_1_label.png", np.zeros((40, 40), np.uint8))
    changes = {"image_folder": "2_Ortho", "mask_folder": "5_Labels", "image_suffix": "_RGB", "mask_suffix": "_label"}
    assert len(build_datasets(settings(train=["2_Ortho/*"], **changes)).train.pairs) == 1
    with pytest.raises(UserError, match=r"does not end in data\.image_suffix = '_IR'"):
        build_datasets(settings(train=["2_Ortho/*"], **(changes | {"image_suffix": "_IR"})))


def test_list_files(settings, tmp_path, pairs_on_disk):
    pairs_on_disk("t1/x", "t2/y", "t2/z")
    (tmp_path / "train.txt").write_text("x\n\nt2/images/z\n")
    (tmp_path / "val.txt").write_text("y.png\n")
    splits = build_datasets(settings(train="train.txt", val="val.txt"))
    assert names(splits.train) == ["t1/images/x.png", "t2/images/z.png"] and names(splits.val) == ["t2/images/y.png"]
    (tmp_path / "val.txt").write_text("y\nq\n")
    with pytest.raises(UserError, match=r"val\.txt: line 2: 'q' names no image"):
        build_datasets(settings(train="train.txt", val="val.txt"))
    with pytest.raises(UserError, match=r"data\.val: no list file gone\.txt"):
        build_datasets(settings(train="train.txt", val="gone.txt"))


def test_a_name_that_fits_two_images_is_refused(settings, tmp_path, pairs_on_disk):
    pairs_on_disk("t1/x", "t2/x")
    (tmp_path / "train.txt").write_text("x\n")
    with pytest.raises(UserError, match="fits 2 images; write the path below the root"):
        build_datasets(settings(train="train.txt"))


def test_missing_root(settings, tmp_path):
    with pytest.raises(UserError, match=r"gone: no such folder; set data\.root"):
        build_datasets(settings(root=str(tmp_path / "gone")))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: is not a folder"):
        build_datasets(settings(root=str(tmp_path / "file")))


@pytest.mark.parametrize("changes", [{}, {"split": {"by": "spatial"}}])
def test_empty_folder(settings, tmp_path, changes):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"no image \(\.png, .*\) matches"):
        build_datasets(settings(**changes))


@pytest.mark.parametrize("pattern", ["/etc/*", "", "**x/*"])
def test_a_glob_that_is_none(settings, pairs_on_disk, pattern):
    pairs_on_disk("x")
    with pytest.raises(UserError, match=r"data\.train"):
        build_datasets(settings(train=[pattern]))


def test_image_without_mask(settings, tmp_path, pairs_on_disk):
    pairs_on_disk("x", "y")
    (tmp_path / "masks" / "y.png").unlink()
    with pytest.raises(UserError, match=r"images/y\.png: has no mask; looked for .*masks/y\{\.png,"):
        build_datasets(settings())


def test_two_masks(settings, tmp_path, pairs_on_disk, write_tiff):
    pairs_on_disk("x")
    write_tiff(tmp_path / "masks" / "x.tif", np.zeros((1, 40, 48), np.uint8))
    with pytest.raises(UserError, match=r"x\.png: has 2 masks \(x\.png, x\.tif\)"):
        build_datasets(settings())


def test_image_outside_the_image_folder(settings, tmp_path, write_png):
    write_png(tmp_path / "x.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match=r"x\.png: no folder named 'images' in its path"):
        build_datasets(settings(train=["*.png"]))


def test_size_mismatch_and_tolerance(settings, tmp_path, pairs_on_disk, write_png):
    pairs_on_disk("x")
    write_png(tmp_path / "masks" / "x.png", np.ones((41, 47), np.uint8))
    with pytest.raises(UserError, match=r"masks/x\.png: mask is 41x47, its image .* is 40x48 .*size_tolerance=1"):
        build_datasets(settings())
    item = build_datasets(
        settings(train=["**/images/*"], val=["**/images/*"], allow_overlap=True, size_tolerance=1)
    ).val[0]
    assert item["image"].shape == (3, 40, 47) and item["label"].shape == (40, 47)


def test_band_counts(settings, tmp_path, pairs_on_disk, write_tiff, write_png):
    pairs_on_disk("x")
    write_tiff(tmp_path / "images" / "y.tif", np.zeros((5, 40, 48), np.uint8), photometric="minisblack")
    write_png(tmp_path / "masks" / "y.png", np.zeros((40, 48), np.uint8))
    with pytest.raises(UserError, match=r"y\.tif: has 5 band\(s\), .*x\.png has 3; set data\.bands"):
        build_datasets(settings())
    with pytest.raises(UserError, match=r"x\.png: has 3 band\(s\), data\.bands asks for band 5"):
        build_datasets(settings(bands=[5, 1]))
    splits = build_datasets(settings(bands=[3, 1]))
    assert splits.bands == [3, 1] and splits.train[0]["image"].shape[0] == 2


def test_text_file_named_png(settings, tmp_path, pairs_on_disk):
    pairs_on_disk("x")
    (tmp_path / "images" / "notes.png").write_text("hello")
    (tmp_path / "masks" / "notes.png").write_text("hello")
    with pytest.raises(UserError, match=r"images/notes\.png: not a readable"):
        build_datasets(settings())


def test_scales_of_single_files(settings, pairs_on_disk):
    pairs_on_disk("t1/x", "t2/y")
    splits = build_datasets(settings(scale=0.5, scales={"t2/*": 0.25}))
    assert [pair.size for pair in splits.train.pairs] == [(20, 24), (10, 12)] and splits.scale == 0.5
    with pytest.raises(UserError, match=r"data\.scales: 't3/\*' matches no image"):
        build_datasets(settings(scales={"t3/*": 0.5}))
