"""The release's padding fault, on and off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published_trees import SIZE, write_tree

from d2ls_fast.config import validate
from d2ls_fast.data import AugmentSettings, DataSettings, build_datasets
from d2ls_fast.data.padding import padded, view_of
from d2ls_fast.data.scenes import SceneReader
from d2ls_fast.data.splits import split_pairs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree("vaihingen", tmp_path_factory.mktemp("vaihingen"))


def settings(root: Path, **changes) -> DataSettings:
    tree = {"dataset": "vaihingen", "root": str(root), "eval_tile": 48, "mean": [100.0] * 3, "std": [50.0] * 3}
    return validate(DataSettings, tree | changes, origin="recipe.yaml")


def counts(items) -> np.ndarray:
    return sum(np.bincount(items[i]["label"].flatten(), minlength=256) for i in range(len(items)))


def test_padding_is_a_fifth_of_a_tile_in_the_release(root):
    pair = replace(split_pairs(settings(root)).test[0], height=1919, width=2569)
    height, width = padded(pair, 1024).extent
    assert (height, width) == (2048, 3072)
    assert 1 - 1919 * 2569 / (height * width) == pytest.approx(0.216, abs=5e-4)


def test_the_switch_alone_makes_padding_class_0(root):
    right, wrong = (build_datasets(settings(root, geoseg_compat=on)) for on in (False, True))
    assert len(right.val) == len(wrong.val) == 3 * 2
    outside = 3 * (48 * 96 - SIZE[0] * SIZE[1])
    honest, release = counts(right.val), counts(wrong.val)
    assert honest[255] - release[255] == outside == release[0] - honest[0]
    np.testing.assert_array_equal(honest[1:255], release[1:255])
    item = wrong.val[1]
    assert (item["label"][SIZE[0] :] == 0).all() and (item["image"][:, SIZE[0] :] == -2.0).all()  # black, normalised


def test_training_sees_the_padding_too(root):
    data = build_datasets(settings(root, geoseg_compat=True), AugmentSettings(crop=96, scales=[1.0], photometric=0))
    label = data.train[0]["label"]
    padding = 48 * 96 - SIZE[0] * SIZE[1]
    assert (label == 0).sum() > padding and (label == 255).sum() == 96 * 48  # beyond the padded tile there is no label


@pytest.mark.parametrize("box", [(0, 0, 40, 64), (30, 60, 18, 30), (45, 3, 3, 90), (41, 70, 2, 2)])
@pytest.mark.parametrize("cached", [0.0, 1.0])
def test_any_box_is_part_of_the_whole(root, box, cached):
    options = settings(root, cache_gigabytes=cached)
    pair = padded(split_pairs(options).val[0], 48)
    cut = np.s_[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    with view_of(SceneReader(options, [1, 2, 3]), pair) as view:
        whole, part = view.read((0, 0, *pair.extent)), view.read(box)
        np.testing.assert_array_equal(view.labels(box), whole.labels[cut])
    np.testing.assert_array_equal(part.image, whole.image[(slice(None), *cut)])
    np.testing.assert_array_equal(part.labels, whole.labels[cut])
    assert torch.from_numpy(whole.labels[SIZE[0] :]).eq(0).all()
