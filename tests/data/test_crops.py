"""Where crops are cut, and how pieces are put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2ls_fast.data.crops import after_scaling, choose_crop, choose_scale, mosaic, pad, place
from d2ls_fast.data.transforms import AugmentSettings

ONCE = AugmentSettings(crop_tries=1)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crop_of(labels: np.ndarray, settings: AugmentSettings, seed: int, scale: float = 1.0) -> tuple[int, int, int, int]:
    """The box that is chosen on the given labels."""

    def inside(box):
        return labels[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]

    return choose_crop(labels.shape, inside, (settings.crop, settings.crop), scale, settings, draws(seed))


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
        top, left, height, width = crop_of(labels, settings, seed)
        assert (height, width) == (100, 100)
        shares.append(np.bincount(labels[top : top + height, left : left + width].ravel()).max() / 1e4)
    assert max(shares) <= 0.75
    once = AugmentSettings(crop=100, crop_tries=1)
    assert any(crop_of(labels, once, seed)[1] < 200 for seed in range(20))


def test_of_crops_that_all_fail_the_most_mixed_is_used():
    labels = np.zeros((100, 400), np.uint8)
    labels[:, 390:] = 1
    settings = AugmentSettings(crop=100, crop_tries=300)
    assert all(crop_of(labels, settings, seed)[1] > 290 for seed in range(10))


def test_unlabelled_pixels_do_not_count_and_unlabelled_crops_are_avoided():
    labels = np.full((50, 200), 255, np.uint8)
    labels[:, 120:160] = 3
    settings = AugmentSettings(crop=50, largest_class=1.0, crop_tries=50)
    for seed in range(20):
        _, left, _, _ = crop_of(labels, settings, seed)
        assert 70 < left < 160


def test_an_image_without_labels_still_gives_a_crop():
    box = crop_of(np.full((40, 40), 255, np.uint8), AugmentSettings(crop=32), 0)
    assert box[2:] == (32, 32)


@pytest.mark.parametrize(("scale", "side"), [(0.5, 64), (1.0, 32), (2.0, 16)])
def test_crop_is_taken_before_resampling(scale, side):
    assert crop_of(np.zeros((100, 100), np.uint8), AugmentSettings(crop=32), 0, scale)[2:] == (side, side)


def test_scales_are_all_used():
    settings = AugmentSettings(scales=[0.5, 1.0, 2.0])
    generator = draws(0)
    assert {choose_scale(settings, generator) for _ in range(40)} == {0.5, 1.0, 2.0}


@pytest.mark.parametrize("scale", [0.3, 0.75, 1.0, 1.25, 1.7])
def test_a_full_window_becomes_exactly_the_crop(scale):
    for side in (32, 37, 512):
        box = choose_crop((2000, 2000), lambda box: np.zeros(box[2:], np.uint8), (side, side), scale, ONCE, draws(0))
        assert after_scaling(box, (side, side), scale) == (side, side)
    assert after_scaling((0, 0, 10, 1000), (512, 512), 2.0) == (20, 512)


def test_small_pieces_lie_anywhere_on_the_canvas():
    corners = set()
    for seed in range(30):
        image, labels = place(torch.ones(2, 3, 4), torch.zeros(3, 4, dtype=torch.int64), (5, 6), draws(seed))
        rows, columns = torch.nonzero(labels == 0, as_tuple=True)
        assert len(rows) == 12 and float(image.sum()) == 24.0 and (labels[labels != 0] == 255).all()
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) >= 8


def test_four_pieces_are_joined_at_a_point_of_the_middle_half():
    points = set()
    for seed in range(40):
        sizes = []

        def piece(size, sizes=sizes):
            sizes.append(size)
            return torch.full((6, *size), float(len(sizes))), torch.full(size, len(sizes))

        image, labels = mosaic(64, piece, draws(seed))
        row, column = sizes[0]
        assert 16 <= row <= 48 and 16 <= column <= 48
        assert sizes == [(row, column), (row, 64 - column), (64 - row, column), (64 - row, 64 - column)]
        expected = 1 + (torch.arange(64) >= row).long()[:, None] * 2 + (torch.arange(64) >= column).long()
        assert torch.equal(labels, expected) and torch.equal(image, expected.float().expand(6, 64, 64))
        points.add((row, column))
    assert len(points) > 30 and min(row for row, _ in points) < 20 and max(row for row, _ in points) > 44
