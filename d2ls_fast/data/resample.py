"""Resampling of images and labels, whole or any part with the same result as resampling the whole."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def resample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``image`` [C, h, w] (floating) to [C, *size]: bilinear, antialiased where it shrinks."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def resample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """``labels`` [h, w] (any integer or bool dtype) to ``size``: nearest pixel centre."""
    if tuple(labels.shape) == size:
        return labels
    rows, columns = (nearest(*lengths, 0, lengths[1]) for lengths in zip(labels.shape, size, strict=True))
    return labels[rows[:, None], columns[None, :]]


def nearest(source: int, target: int, start: int, stop: int) -> Tensor:
    """The source pixels (int64) whose centres are nearest to output pixels ``start`` to ``stop`` of an axis that goes
    from ``source`` to ``target`` pixels."""
    return ((torch.arange(start, stop) + 0.5) * (source / target)).long().clamp_(max=source - 1)


@lru_cache(maxsize=32)
def axis_resampler(source: int, target: int) -> AxisResampler:
    """An :class:`AxisResampler`, made once for each pair of lengths in use."""
    return AxisResampler(source, target)


class AxisResampler:
    """Resamples one axis from ``source`` to ``target`` pixels with a triangle filter (antialiased when shrinking).

    Output pixel ``i`` is centred on ``c = (i + 0.5) * source / target`` and takes input pixel ``j`` with a weight
    proportional to ``max(0, 1 - |j + 0.5 - c| / r)``, ``r = max(1, source / target)``: the filter of
    ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``. Weights depend on absolute positions only, so
    windows of a scene agree with the whole scene, which ``interpolate`` on each window would not.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        ratio = source / target
        radius = max(1.0, ratio)
        centre = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio
        reach = torch.arange(int(2 * radius) + 2)
        index = (centre - radius + 0.5).floor().long()[:, None] + reach
        weight = (1 - (index + 0.5 - centre[:, None]).abs() / radius).clamp(min=0)
        weight[(index < 0) | (index >= source)] = 0
        used = weight > 1e-9  # rounding must not make a pixel depend on one that it only touches
        self._first = torch.where(used, index, source).amin(dim=1)
        self._last = torch.where(used, index, -1).amax(dim=1)
        taps = used.any(dim=0)
        self._index = index.clamp(0, source - 1)[:, taps]
        weight = weight * used
        self._weight = (weight / weight.sum(dim=1, keepdim=True)).float()[:, taps]

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The input pixels ``(first, end)`` that output pixels ``start`` to ``stop`` are made of."""
        return int(self._first[start]), int(self._last[stop - 1]) + 1

    def ready(self, available: int) -> int:
        """How many output pixels, from the first, need no input pixel beyond the first ``available``."""
        return int(torch.searchsorted(self._last, available))

    def apply(self, values: Tensor, dim: int, start: int, stop: int) -> Tensor:
        """Output pixels ``start`` to ``stop`` along ``dim``; ``values`` are the input pixels ``span(start, stop)``."""
        if self.source == self.target:
            return values
        if dim == values.ndim - 1 > 0:  # picking rows copies memory, picking columns visits every element
            return self.apply(values.transpose(-1, -2).contiguous(), dim - 1, start, stop).transpose(-1, -2)
        shape = [1] * values.ndim
        shape[dim] = stop - start
        offset = self.span(start, stop)[0]
        index = (self._index[start:stop] - offset).clamp(0, values.shape[dim] - 1).to(values.device)
        weight = self._weight[start:stop].to(values)
        result = values.index_select(dim, index[:, 0]) * weight[:, 0].view(shape)
        for tap in range(1, index.shape[1]):
            result += values.index_select(dim, index[:, tap]) * weight[:, tap].view(shape)
        return result
