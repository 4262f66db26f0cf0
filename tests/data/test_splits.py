from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from d2ls_fast.config import validate
from d2ls_fast.data import build_datasets
from d2ls_fast.data.config import SplitSettings
from d2ls_fast.data.folder import make_pair, pool
from d2ls_fast.data.splits import split_by_rule, split_pairs
from d2ls_fast.errors import UserError


def stems(pairs):
    return [Path(pair.name).stem for pair in pairs]


def divide(settings, **rule):
    return split_pairs(settings(split=rule))


@pytest.fixture
def tiles(tmp_path, write_tiff):
    """``tiles(rows, columns, stride)``: georeferenced tiles r<row>c<column> of 32 pixels."""

    def write(rows: int, columns: int, stride: int = 32, crs: str = "EPSG:32632", prefix: str = "") -> None:
        for row in range(rows):
            for column in range(columns):
                origin = (500000 + column * stride * 10.0, 5000000 - row * stride * 10.0)
                for folder, bands in (("images", 3), ("masks", 1)):
                    path = tmp_path / folder / f"{prefix}r{row}c{column}.tif"
                    write_tiff(path, np.zeros((bands, 32, 32), np.uint8), origin=origin, crs=crs)

    return write


def test_tiles_are_divided_into_contiguous_blocks_along_the_longer_side(settings, tiles):
    tiles(2, 5)
    split = divide(settings, val=0.2, test=0.2)
    assert set(stems(split.train)) == {f"r{row}c{column}" for row in range(2) for column in range(3)}
    assert set(stems(split.val)) == {"r0c3", "r1c3"} and set(stems(split.test)) == {"r0c4", "r1c4"}


def test_a_tall_area_is_divided_by_rows(settings, tiles):
    tiles(5, 2)
    held_out = divide(settings, val=0.2).val
    assert len({name[:2] for name in stems(held_out)}) == 1 and len(held_out) == 2


def test_shift_moves_the_held_out_block(settings, tiles):
    tiles(2, 4)
    assert set(stems(divide(settings, val=0.25, shift=0.5).val)) == {"r0c1", "r1c1"}
    assert set(stems(divide(settings, val=0.25).val)) == {"r0c3", "r1c3"}


def test_each_coordinate_system_gives_its_share(settings, tiles):
    tiles(1, 4)
    tiles(1, 4, crs="EPSG:32633", prefix="z")
    assert sorted(stems(divide(settings, val=0.25).val)) == ["r0c3", "zr0c3"]


def test_training_patches_that_overlap_held_out_ground_are_left_out(settings, tiles, caplog):
    tiles(1, 8, stride=16)
    with caplog.at_level(logging.WARNING):
        split = divide(settings, val=0.25)
    assert stems(split.val) == ["r0c6", "r0c7"] and stems(split.train) == [f"r0c{column}" for column in range(5)]
    assert "1 training image(s) left out" in caplog.text


def test_plain_images_are_divided_in_runs_of_each_folder(settings, pairs_on_disk):
    pairs_on_disk(*[f"tile{tile}/part_{part}" for tile in (1, 2) for part in range(1, 11)])
    split = divide(settings, val=0.2, test=0.1)
    assert stems(split.val) == ["part_8", "part_9"] * 2 and stems(split.test) == ["part_10"] * 2
    assert len(split.train) == 14


def test_small_folders_together_give_the_share(settings, pairs_on_disk):
    pairs_on_disk(*[f"tile{tile}/x" for tile in range(10)])
    split = divide(settings, val=0.3, test=0.2)
    assert len(split.val) == 3 and len(split.test) == 2 and len(split.train) == 5


def test_random_split_follows_its_seed(settings, pairs_on_disk):
    pairs_on_disk(*[f"x{index}" for index in range(10)])
    first, again, other = (stems(divide(settings, by="random", val=0.3, seed=seed).val) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 3


def test_splits_never_share_an_image(settings, pairs_on_disk):
    pairs_on_disk(*[f"t{index % 3}/x{index}" for index in range(17)])
    for by in ("spatial", "random"):
        split = divide(settings, by=by, val=0.3, test=0.25, shift=0.4)
        assert len(split.all) == len({pair.name for pair in split.all}) == 17


@pytest.mark.parametrize(("rule", "what"), [({"val": 0.1}, "val"), ({"val": 0.9}, "train")])
def test_a_split_that_leaves_nothing(settings, pairs_on_disk, rule, what):
    pairs_on_disk("x", "y")
    with pytest.raises(UserError, match=rf"the split of 2 image\(s\) leaves none for {what}"):
        divide(settings, **rule)


def test_explicit_lists_that_overlap(settings, pairs_on_disk):
    pairs_on_disk("x", "y")
    lists = {"train": ["images/*"], "val": ["images/y.png"]}
    with pytest.raises(UserError, match=r"images/y\.png: in both data\.train and data\.val \(1 image"):
        build_datasets(settings(**lists))
    assert len(build_datasets(settings(**lists, allow_overlap=True)).val) == 1


def test_lists_name_no_training_image(settings, pairs_on_disk):
    pairs_on_disk("x")
    with pytest.raises(UserError, match=r"data\.train names no image"):
        build_datasets(settings(train=[]))


def test_rule_works_on_any_pairs(settings, pairs_on_disk):
    pairs_on_disk("x", "y")
    chosen = settings()
    rule = validate(SplitSettings, {"val": 0.5}, origin="recipe.yaml")
    split = split_by_rule([make_pair(chosen, path) for path in pool(chosen)], rule, chosen.root)
    assert stems(split.train) == ["x"] and stems(split.val) == ["y"]
