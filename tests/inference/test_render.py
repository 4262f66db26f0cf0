"""Pictures: legend, truth beside prediction."""

from __future__ import annotations

import numpy as np

from d2ls_fast.inference.render import side_by_side, with_legend

PALETTE = [[0, 0, 200], [200, 0, 0]]


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
