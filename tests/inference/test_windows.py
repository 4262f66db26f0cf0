"""The window grid covers every pixel, the blending weights sum to one, open rows are bounded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from d2ls_fast.errors import UserError
from d2ls_fast.inference.windows import GRAIN, blend_weights, window_starts

GRIDS = [(1, 64, 16), (64, 64, 16), (65, 64, 16), (200, 64, 0), (1000, 64, 63), (517, 64, 40), (112, 64, 16)]


@pytest.mark.parametrize(("length", "window", "overlap"), GRIDS)
def test_windows_cover_the_axis_with_at_least_the_overlap(length: int, window: int, overlap: int) -> None:
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - window)
    assert all(0 < right - left <= window - overlap for left, right in pairwise(starts))


@pytest.mark.parametrize("blend", ["cosine", "gaussian", "none"])
@pytest.mark.parametrize(("length", "window", "overlap"), GRIDS)
def test_weights_of_a_pixel_sum_to_exactly_one(length: int, window: int, overlap: int, blend: Any) -> None:
    starts = window_starts(length, window, overlap)
    weights = blend_weights(starts, window, length, blend)
    total = torch.zeros(length, dtype=torch.float64)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + len(row)] += row
    assert (total == 1).all()
    assert (weights >= 0).all()
    assert (weights * GRAIN == (weights * GRAIN).round()).all()


def test_without_blending_a_pixel_belongs_to_the_nearest_window() -> None:
    weights = blend_weights([0, 40, 80], 64, 144, "none")
    owners = [
        [start <= p < start + 64 and float(weights[i, p - start]) for i, start in enumerate((0, 40, 80))]
        for p in range(144)
    ]
    assert all(sorted(each)[-2:] == [0, 1] for each in owners)
    assert [each.index(1) for each in owners] == [0] * 52 + [1] * 40 + [2] * 52


def test_gaussian_weights_fall_from_the_centre() -> None:
    first = blend_weights([0, 16, 32], 64, 96, "gaussian")[1]
    assert first[31] > first[10] > first[0]


def test_an_unknown_blend_is_refused() -> None:
    with pytest.raises(UserError, match=r"blend 'linear': .* take cosine, gaussian, none"):
        blend_weights([0], 64, 64, "linear")  # type: ignore[arg-type]


def test_a_window_counts_least_at_its_edge() -> None:
    first, second = blend_weights([0, 48], 64, 112)
    assert (first[48:].diff() <= 0).all()
    assert (second[:16].diff() >= 0).all()
    assert first[-1] < 0.01


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_an_overlap_outside_the_window_is_refused(overlap: int) -> None:
    with pytest.raises(UserError, match=f"overlap {overlap} .* window of 64"):
        window_starts(500, 64, overlap)
