from __future__ import annotations

import numpy as np
import pytest
import torch

from d2ls_fast.data.transforms import (
    AugmentSettings,
    augment,
    choose_crop,
    choose_scale,
    pad,
    resample,
    resample_labels,
)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_image_and_labels_move_together():
    labels = torch.randint(0, 5, (48, 64), generator=draws(0))
    image = labels.float()[None].repeat(6, 1, 1)
    settings = AugmentSettings(crop=64, photometric=0.0)
    seen = set()
    for seed in range(40):
        new_image, new_labels = augment(image, labels, settings, draws(seed))
        assert new_image.shape == (6, 64, 64) and new_labels.shape == (64, 64)
        inside = new_labels != 255
        assert int(inside.sum()) == 48 * 64
        assert torch.equal(new_image[3][inside], new_labels[inside].float()) and not new_image[:, ~inside].any()
        seen.add(tuple(new_labels[inside][:20].tolist()))
    assert len(seen) >= 8


def test_padding_is_the_mean_and_unlabelled():
    image, labels = pad(torch.ones(2, 3, 4), torch.zeros(3, 4, dtype=torch.int64), (5, 6), corner=(1, 2))
    assert int((labels == 0).sum()) == 12 and labels[1, 2] == 0 and labels[0, 0] == 255 and labels[4, 5] == 255
    assert float(image.sum()) == 24.0 and image[0, 1, 2] == 1.0


def test_largest_class_rule_draws_again():
    labels = np.zeros((100, 400), np.uint8)
    labels[:, 300:] = 1
    settings = AugmentSettings(crop=100, crop_tries=50)
    shares = []
    for seed in range(20):
        top, left, height, width = choose_crop(labels, 1.0, settings, draws(seed))
        assert (height, width) == (100, 100)
        shares.append(np.bincount(labels[top : top + height, left : left + width].ravel()).max() / 1e4)
    assert max(shares) <= 0.75
    once = AugmentSettings(crop=100, crop_tries=1)
    assert any(choose_crop(labels, 1.0, once, draws(seed))[1] < 200 for seed in range(20))


def test_of_crops_that_all_fail_the_most_mixed_is_used():
    labels = np.zeros((100, 400), np.uint8)
    labels[:, 390:] = 1
    settings = AugmentSettings(crop=100, crop_tries=300)
    assert all(choose_crop(labels, 1.0, settings, draws(seed))[1] > 290 for seed in range(10))


def test_unlabelled_pixels_do_not_count_and_unlabelled_crops_are_avoided():
    labels = np.full((50, 200), 255, np.uint8)
    labels[:, 120:160] = 3
    settings = AugmentSettings(crop=50, largest_class=1.0, crop_tries=50)
    for seed in range(20):
        _, left, _, _ = choose_crop(labels, 1.0, settings, draws(seed))
        assert 70 < left < 160


def test_an_image_without_labels_still_gives_a_crop():
    box = choose_crop(np.full((40, 40), 255, np.uint8), 1.0, AugmentSettings(crop=32), draws(0))
    assert box[2:] == (32, 32)


@pytest.mark.parametrize(("scale", "side"), [(0.5, 64), (1.0, 32), (2.0, 16)])
def test_crop_is_taken_before_resampling(scale, side):
    assert choose_crop(np.zeros((100, 100), np.uint8), scale, AugmentSettings(crop=32), draws(0))[2:] == (side, side)


def test_scales_are_all_used():
    settings = AugmentSettings(scales=[0.5, 1.0, 2.0])
    generator = draws(0)
    assert {choose_scale(settings, generator) for _ in range(40)} == {0.5, 1.0, 2.0}


def test_light_changes_keep_labels_and_differ_in_brightness():
    labels = torch.zeros(32, 32, dtype=torch.int64)
    image = torch.randn(3, 32, 32, generator=draws(1))
    settings = AugmentSettings(crop=32, photometric=1.0, brightness=0.5, contrast=0.0, rot90=0, hflip=0, vflip=0)
    changed, same = augment(image, labels, settings, draws(2))
    shift = changed - image
    assert torch.equal(same, labels) and 0.001 < shift.abs().max() <= 0.5 and (shift - shift.mean()).abs().max() < 1e-5


def test_nearest_labels_match_the_centre_pixel():
    labels = torch.arange(36).reshape(6, 6)
    assert resample_labels(labels, (2, 2)).tolist() == [[7, 10], [25, 28]]
    assert torch.equal(resample_labels(labels, (12, 12))[::2, 1::2], labels)


def test_shrinking_averages_out_fine_patterns():
    image = torch.zeros(1, 64, 64)
    image[..., ::4] = 1.0  # a plain bilinear sample at the new centres would miss every bright column
    assert (resample(image, (16, 16))[..., 2:-2] - 0.25).abs().max() < 0.1


def test_same_generator_state_gives_the_same_item():
    image, labels = torch.randn(3, 40, 40, generator=draws(1)), torch.zeros(40, 40, dtype=torch.int64)
    settings = AugmentSettings(crop=48, photometric=1.0)
    assert torch.equal(augment(image, labels, settings, draws(5))[0], augment(image, labels, settings, draws(5))[0])
