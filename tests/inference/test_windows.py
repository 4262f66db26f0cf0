"""The window grid covers every pixel, the blending weights sum to one, open rows are bounded."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from d2ls_fast.errors import UserError
from d2ls_fast.inference.windows import OpenRows, blend_weights, window_starts

GRIDS = [(1, 64, 16), (64, 64, 16), (65, 64, 16), (200, 64, 0), (1000, 64, 63), (517, 64, 40), (112, 64, 16)]


@pytest.mark.parametrize(("length", "window", "overlap"), GRIDS)
def test_windows_cover_the_axis_with_at_least_the_overlap(length: int, window: int, overlap: int) -> None:
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - window)
    assert all(0 < right - left <= window - overlap for left, right in pairwise(starts))


@pytest.mark.parametrize(("length", "window", "overlap"), GRIDS)
def test_weights_of_a_pixel_sum_to_one(length: int, window: int, overlap: int) -> None:
    starts = window_starts(length, window, overlap)
    weights = blend_weights(starts, window, length)
    total = torch.zeros(length)
    count = torch.zeros(length)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + len(row)] += row
        count[start : start + len(row)] += 1
    assert torch.allclose(total, torch.ones(length), atol=1e-6)
    assert (weights > 0).all()
    assert (total[count == 1] == 1).all()


def test_a_window_counts_least_at_its_edge() -> None:
    first, second = blend_weights([0, 48], 64, 112)
    assert (first[48:].diff() < 0).all()
    assert (second[:16].diff() > 0).all()
    assert first[-1] < 0.01


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_an_overlap_outside_the_window_is_refused(overlap: int) -> None:
    with pytest.raises(UserError, match=f"overlap {overlap} .* window of 64"):
        window_starts(500, 64, overlap)


def test_open_rows_keep_what_is_open_and_forget_the_rest() -> None:
    rows = OpenRows(2, 3, torch.float32)
    rows.view(0, 4)[:] = 1
    rows.view(2, 6)[:] += 1
    rows.forget(3)
    assert rows.view(3, 6)[0, :, 0].tolist() == [2, 1, 1]
    assert rows.view(5, 8)[1, :, 2].tolist() == [1, 0, 0]
    with pytest.raises(IndexError, match="row 2 was handed on"):
        rows.view(2, 4)
