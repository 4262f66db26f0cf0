"""Imagery and labels as 8-bit pictures."""

from __future__ import annotations

import numpy as np
import pytest

from d2ls_fast.data.pictures import overlay, rgb_bands, stretch, thin

PALETTE = [[0, 0, 200], [200, 0, 0]]


@pytest.mark.parametrize(("bands", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_bands_gives_three(bands: int, shown: list[int]) -> None:
    image = np.arange(bands)[:, None, None] * np.ones((1, 4, 5))
    assert rgb_bands(image)[:, 0, 0].tolist() == shown


@pytest.mark.parametrize(("height", "width", "kept"), [(40, 30, (40, 30)), (41, 30, (20, 15)), (1000, 3, (40, 1))])
def test_thinning_keeps_to_the_side(height: int, width: int, kept: tuple[int, int]) -> None:
    array = np.zeros((2, height, width))
    assert thin(array, 40).shape == (2, *kept) and thin(array[0], 40).shape == kept


def test_stretch_spreads_the_percentiles_over_eight_bits() -> None:
    image = np.linspace(1000, 3000, 3 * 50 * 50).reshape(3, 50, 50).astype(np.uint16)
    image[:, 0, 0] = 65535  # a single glint must not darken the rest
    known = np.ones((50, 50), bool)
    known[:, 40:] = False
    picture = stretch(image, known)
    assert picture.shape == (50, 50, 3)
    assert picture.dtype == np.uint8
    assert picture[known].min() == 0
    assert picture[known].max() == 255
    assert 100 < picture[known].mean() < 155
    assert (picture[~known] == 0).all()


def test_stretch_of_flat_or_missing_imagery_is_black() -> None:
    assert (stretch(np.full((3, 4, 4), 7.0)) == 0).all()
    assert (stretch(np.full((3, 4, 4), np.nan)) == 0).all()


def test_overlay_tints_classes_and_leaves_the_rest() -> None:
    rgb = np.full((1, 3, 3), 100, np.uint8)
    result = overlay(rgb, np.array([[0, 1, 255]], np.uint8), PALETTE)
    assert result[0].tolist() == [[55, 55, 145], [145, 55, 55], [100, 100, 100]]
