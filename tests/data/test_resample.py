"""Resampling a part gives what resampling the whole gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from d2ls_fast.data.resample import AxisResampler, resample, resample_labels

SIZES = [(100, 35), (35, 100), (64, 32), (61, 61), (50, 51), (97, 1), (1, 7), (2, 300)]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_whole_axis_is_antialiased_bilinear_interpolation(source: int, target: int) -> None:
    values = torch.randn(3, source, 4, generator=torch.Generator().manual_seed(0))
    expected = interpolate(values[None], size=(target, 4), mode="bilinear", antialias=True)[0]
    assert torch.allclose(AxisResampler(source, target).apply(values, 1, 0, target), expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_a_part_equals_the_same_part_of_the_whole(source: int, target: int) -> None:
    axis = AxisResampler(source, target)
    values = torch.randn(2, source, generator=torch.Generator().manual_seed(1))
    whole = axis.apply(values, 1, 0, target)
    for start in range(0, target, 5):
        stop = min(target, start + 7)
        first, end = axis.span(start, stop)
        assert torch.equal(axis.apply(values[:, first:end], 1, start, stop), whole[:, start:stop])


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_ready_counts_the_pixels_that_need_nothing_more(source: int, target: int) -> None:
    axis = AxisResampler(source, target)
    for available in range(source + 1):
        ready = axis.ready(available)
        assert ready == 0 or axis.span(0, ready)[1] <= available
        assert ready == target or axis.span(ready, ready + 1)[1] > available


def test_nearest_labels_match_the_centre_pixel():
    labels = torch.arange(36).reshape(6, 6)
    assert resample_labels(labels, (2, 2)).tolist() == [[7, 10], [25, 28]]
    assert torch.equal(resample_labels(labels, (12, 12))[::2, 1::2], labels)


def test_shrinking_averages_out_fine_patterns():
    image = torch.zeros(1, 64, 64)
    image[..., ::4] = 1.0  # a plain bilinear sample at the new centres would miss every bright column
    assert (resample(image, (16, 16))[..., 2:-2] - 0.25).abs().max() < 0.1
