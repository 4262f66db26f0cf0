"""Figures of a run, and the curves they draw."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ls_fast.training.figures import DARK, LIGHT, curve_figure, matrix_figure, png, read_curves, row_shares
from d2ls_fast.training.metrics import scores_from_matrix


def test_curves_are_read_by_column_without_the_gaps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,lr,mean_iou\n10,2.5,1e-3,\n20,2,5e-4,\n20,,,0.4\n")
    assert read_curves(path) == {
        "loss": [(10, 2.5), (20, 2.0)],
        "lr": [(10, 1e-3), (20, 5e-4)],
        "mean_iou": [(20, 0.4)],
    }


def test_rows_of_the_matrix_sum_to_one_and_absent_classes_have_none() -> None:
    shares = row_shares(scores_from_matrix([[3, 1, 0], [1, 1, 2], [0, 0, 0]]))
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0.25, 0.25, 0.5], [np.nan] * 3])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_matrix_has_a_cell_for_every_pair_and_takes_any_name(theme) -> None:
    figure = matrix_figure(scores_from_matrix([[3, 1], [0, 4]]), [r"$\frac{", "<b>"], theme=theme)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "0", "100"]
    with Image.open(io.BytesIO(png(figure))) as picture:
        ground = picture.convert("RGB").getpixel((1, 1))
    assert "#{:02x}{:02x}{:02x}".format(*ground) == theme.ground


def test_many_classes_stay_a_picture_of_bounded_size() -> None:
    figure = matrix_figure(scores_from_matrix(np.eye(120, dtype=int).tolist()), [str(k) for k in range(120)])
    assert max(figure.get_size_inches()) <= 20 and not figure.axes[0].texts


def test_long_curves_are_smoothed_and_thinned_and_the_best_is_named() -> None:
    loss = [(step, 1.0 + (-1) ** step) for step in range(10_000)]
    raw, mean, other = curve_figure({"total": loss, "dice": loss[:3]}, "loss", smooth=True).axes[0].lines
    assert len(raw.get_xdata()) <= 2000 and len(mean.get_xdata()) <= 2000 and len(other.get_xdata()) == 3
    assert np.allclose(mean.get_ydata(), 1.0)
    axes = curve_figure({"mean IoU": [(1, 0.2), (2, 0.7), (3, 0.5)]}, "score", mark_best=True).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.700 at step 2"]


def test_a_single_point_can_be_drawn() -> None:
    assert png(curve_figure({"total": [(1, 2.0)]}, "loss", smooth=True, mark_best=True)).startswith(b"\x89PNG")
