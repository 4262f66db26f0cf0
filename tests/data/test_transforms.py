"""Changes of values and quarter turns."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from d2ls_fast.data.transforms import AugmentSettings, change_values, sharpened, turn


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_image_and_labels_turn_together():
    labels = torch.arange(36).reshape(6, 6)
    image = labels.float()[None].repeat(6, 1, 1)
    seen = set()
    for seed in range(60):
        new_image, new_labels = turn(image, labels, AugmentSettings(), draws(seed))
        assert torch.equal(new_image[3], new_labels.float())
        seen.add(tuple(new_labels.flatten().tolist()))
    assert len(seen) == 8  # the whole symmetry of the square
    same = turn(image, labels, AugmentSettings(rot90=0, hflip=0, vflip=0), draws(0))
    assert torch.equal(same[1], labels)


def test_light_changes_differ_in_brightness():
    image = torch.randn(3, 32, 32, generator=draws(1))
    settings = AugmentSettings(photometric=1.0, brightness=0.5, contrast=0.0)
    shift = change_values(image, settings, draws(2)) - image
    assert 0.001 < shift.abs().max() <= 0.5 and (shift - shift.mean()).abs().max() < 1e-5


def test_contrast_keeps_the_mean_of_each_band():
    image = torch.randn(4, 32, 32, generator=draws(1)) + torch.arange(4.0)[:, None, None]
    changed = change_values(image, AugmentSettings(photometric=1.0, brightness=0.0, contrast=0.5), draws(2))
    assert torch.allclose(changed.mean((1, 2)), image.mean((1, 2)), atol=1e-5)
    ratio = changed.std((1, 2)) / image.std((1, 2))
    assert 0.01 < (ratio - 1).abs().max() <= 0.5 and ratio.std() < 1e-5


@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0])
def test_sharpening_is_that_of_torchvision(amount):
    image = 0.4 + 0.2 * torch.rand(3, 20, 24, generator=draws(0))  # far enough from 0 and 1 not to be cut there
    expected = vision.adjust_sharpness(image, 1.0 + amount)
    assert torch.allclose(sharpened(image, amount), expected, atol=1e-6)


def test_sharpening_takes_any_bands_values_and_sizes():
    image = torch.randn(7, 9, 5, generator=draws(0))
    changed = sharpened(image, 0.7)
    assert torch.allclose(changed[2:3], sharpened(image[2:3], 0.7))
    assert changed[:, 1:-1, 1:-1].std() > image[:, 1:-1, 1:-1].std() and torch.equal(changed[:, 0], image[:, 0])
    assert torch.equal(sharpened(torch.ones(5, 8, 8), 1.0), torch.ones(5, 8, 8))
    assert torch.equal(sharpened(image[:, :2], 1.0), image[:, :2])


def test_sharpening_happens_by_chance():
    image = torch.randn(2, 8, 8, generator=draws(0))
    settings = AugmentSettings(photometric=0.0, sharpen=0.5, sharpness=2.0)
    changed = [not torch.equal(change_values(image, settings, draws(seed)), image) for seed in range(60)]
    assert 18 <= sum(changed) <= 42


def test_same_generator_state_gives_the_same_item():
    image, labels = torch.randn(3, 40, 40, generator=draws(1)), torch.zeros(40, 40, dtype=torch.int64)
    settings = AugmentSettings(photometric=1.0, sharpen=1.0)

    def once():
        generator = draws(5)
        return turn(change_values(image, settings, generator), labels, settings, generator)[0]

    assert torch.equal(once(), once())
