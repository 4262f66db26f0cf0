"""Pictures: stretch, tint, legend, truth beside prediction."""

from __future__ import annotations

import numpy as np

from d2ls_fast.inference.render import overlay, side_by_side, stretch, with_legend

PALETTE = [[0, 0, 200], [200, 0, 0]]


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


def test_legend_stands_beside_the_whole_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (30, 60, 3), dtype=np.uint8)
    canvas = np.asarray(with_legend(picture, ["water", "a long class name"], PALETTE, [0.25, 0.75], ["shown at 1:4"]))
    assert np.array_equal(canvas[:30, :60], picture)
    panel = canvas[:, 60:].reshape(-1, 3).tolist()
    assert all(colour in panel for colour in PALETTE)
    assert canvas.shape[0] > 60  # grown to hold the entries
    assert (canvas[:, -4:] == 255).all()  # no text cut off at the edge


def test_side_by_side_shows_image_truth_and_prediction() -> None:
    rgb = np.full((20, 30, 3), 50, np.uint8)
    truth, predicted = np.zeros((20, 30), np.uint8), np.ones((20, 30), np.uint8)
    canvas = np.asarray(
        side_by_side([(rgb, truth, predicted), (rgb[:10], truth[:10], predicted[:10])], ["a", "b"], PALETTE)
    )
    row = canvas[45].tolist()
    assert [row.index([50, 50, 50]), row.index(PALETTE[0]), row.index(PALETTE[1])] == [12, 54, 96]
    assert canvas.shape[1] == 3 * 30 + 4 * 12
