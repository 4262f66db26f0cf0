from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from d2ls_fast.data import AugmentSettings, build_datasets
from d2ls_fast.data.datasets import TrainCrops
from d2ls_fast.errors import UserError

CROP = AugmentSettings(crop=32)


def test_training_items(settings, pairs_on_disk):
    pairs_on_disk("x", "y")
    train = build_datasets(settings(), CROP).train
    item = train[0]
    assert item["image"].dtype == torch.float32 and item["image"].shape == (3, 32, 32)
    assert item["label"].dtype == torch.int64 and item["label"].shape == (32, 32)
    assert item["name"] in ("images/x.png", "images/y.png")
    assert len(train) == 4  # two images of 40 x 48 are 3.75 crops
    with pytest.raises(IndexError):
        train[4]


def test_image_and_label_of_a_crop_belong_together(settings, tmp_path, write_png):
    labels = np.zeros((80, 90), np.uint8)
    labels[:30, 40:] = 1
    write_png(tmp_path / "images" / "x.png", np.dstack([labels * 100 + 50] * 3))
    write_png(tmp_path / "masks" / "x.png", labels)
    train = build_datasets(
        settings(samples_per_epoch=30, mean=[100] * 3, std=[50] * 3), AugmentSettings(crop=32, photometric=0.0)
    ).train
    torch.manual_seed(0)
    for index in range(30):
        item = train[index]
        agree = ((item["image"][0] > 0) == (item["label"] == 1))[item["label"] != 255]
        assert agree.float().mean() > 0.95  # the edge between the classes blurs


def test_mosaics_join_four_images_by_the_same_rules(settings, tmp_path, write_png):
    for number in range(6):
        labels = np.full((80, 90), 0, np.uint8)
        labels[10 * number :, 40:] = 1
        write_png(tmp_path / "images" / f"{number}.png", np.dstack([labels * 100 + 50 + number] * 3))
        write_png(tmp_path / "masks" / f"{number}.png", labels)
    changes = {"samples_per_epoch": 30, "mean": [100] * 3, "std": [50] * 3}
    plain = AugmentSettings(crop=48, scales=[1.0], photometric=0.0, mosaic=1.0, rot90=0, hflip=0, vflip=0)
    train = build_datasets(settings(**changes), plain).train
    torch.manual_seed(0)
    images_joined = []
    for index in range(30):
        item = train[index]
        assert item["image"].shape == (3, 48, 48)
        assert ((item["image"][0] > 0) == (item["label"] == 1)).all()
        raw = (item["image"][0] * 50 + 100).round().long() % 50
        images_joined.append(len(raw.unique()))
    assert max(images_joined) == 4 and sum(images_joined) > 60
    large = build_datasets(settings(**changes), plain.model_copy(update={"crop": 400})).train[0]
    assert large["image"].shape == (3, 400, 400)
    assert not large["image"][:, large["label"] == 255].any()  # each quarter is padded, and padding is no class


def test_an_item_can_be_asked_for_at_another_size(settings, pairs_on_disk):
    pairs_on_disk("x", size=(100, 100))
    train = build_datasets(settings(), CROP).train
    assert train.item(0, 64)["image"].shape == (3, 64, 64) and train[0]["image"].shape == (3, 32, 32)


def test_samples_follow_the_area(settings, pairs_on_disk):
    pairs_on_disk("small", size=(32, 32))
    pairs_on_disk("large", size=(96, 96))
    train = build_datasets(settings(samples_per_epoch=100), CROP).train
    drawn = [train[index]["name"] for index in range(100)]
    assert 88 <= drawn.count("images/large.png") <= 92


def test_smaller_images_are_padded(settings, pairs_on_disk):
    pairs_on_disk("x", size=(16, 20))
    item = build_datasets(settings(), AugmentSettings(crop=64, scales=[1.0])).train[0]
    assert item["label"].shape == (64, 64) and int((item["label"] != 255).sum()) == 16 * 20


def test_items_repeat_with_the_seed(settings, pairs_on_disk):
    pairs_on_disk("x", size=(100, 100))
    splits = build_datasets(settings(), CROP)

    def epoch(seed: int, workers: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([batch["image"] for batch in DataLoader(splits.train, batch_size=4, num_workers=workers)])

    assert torch.equal(epoch(1, 0), epoch(1, 0)) and not torch.equal(epoch(1, 0), epoch(2, 0))
    assert torch.equal(epoch(1, 2), epoch(1, 2))
    crops = TrainCrops(
        splits.train.pairs,
        splits.train._reader,
        splits.mean,
        splits.std,
        CROP,
        generator=torch.Generator().manual_seed(3),
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    crops[0]
    assert torch.equal(before, torch.get_rng_state())


def test_whole_images_keep_their_size(settings, pairs_on_disk):
    pairs_on_disk("x", "y")
    splits = build_datasets(settings(train=["images/x*"], val=["images/y*"]), CROP)
    item = splits.val[0]
    assert len(splits.val) == 1 and len(splits.test) == 0
    assert item["image"].shape == (3, 40, 48) and item["name"] == "images/y.png"
    assert torch.equal(item["label"], torch.arange(48).ge(24).long().expand(40, 48))


def test_tiny_evaluation_images_are_padded_to_what_the_model_takes(settings, pairs_on_disk):
    pairs_on_disk("x", "y", size=(20, 50))
    item = build_datasets(settings(train=["images/x*"], val=["images/y*"]), CROP).val[0]
    assert item["image"].shape == (3, 32, 50) and (item["label"][20:] == 255).all() and (item["label"][:20] < 2).all()


def test_grid_tiles_hold_every_pixel_once(settings, pairs_on_disk):
    pairs_on_disk("x", "y", size=(70, 100))
    val = build_datasets(settings(train=["images/x*"], val=["images/y*"], eval_tile=32), CROP).val
    items = [val[index] for index in range(len(val))]
    assert len(items) == 3 * 4 and {tuple(item["image"].shape) for item in items} == {(3, 32, 32)}
    assert sum(int((item["label"] != 255).sum()) for item in items) == 70 * 100
    assert items[-1]["name"] == "images/y.png@64,96"


def test_an_unknown_value_is_an_error_at_first_read(settings, tmp_path, pairs_on_disk, write_png):
    pairs_on_disk("x", "y")
    write_png(tmp_path / "masks" / "y.png", np.full((40, 48), 9, np.uint8))
    splits = build_datasets(settings(train=["images/x*"], val=["images/y*"]), CROP)
    with pytest.raises(UserError, match=r"masks/y\.png: value 9 is in 1920 pixels"):
        splits.val[0]


def test_what_a_checkpoint_remembers(settings, pairs_on_disk):
    pairs_on_disk("x")
    splits = build_datasets(
        settings(classes=[{"name": "a", "colour": "#010203"}, {"name": "b"}], bands=[2, 1], scale=0.9)
    )
    assert splits.classes == ["a", "b"] and splits.palette[0] == [1, 2, 3] and splits.bands == [2, 1]
    assert len(splits.mean) == len(splits.std) == 2 and splits.scale == 0.9
