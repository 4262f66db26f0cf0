"""Overlapping windows along an axis, their blending weights, and the raster rows still open between them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from d2ls_fast.errors import UserError


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First pixel of every window on an axis of ``length`` pixels, evenly spread so that the last one ends on the edge.

    Neighbours share at least ``overlap`` pixels. An axis no longer than the window has the single start 0.

    Raises:
        UserError: ``overlap`` is not in ``[0, window)``.
    """
    if not 0 <= overlap < window:
        raise UserError(f"overlap {overlap} must be at least 0 and smaller than the window of {window} pixels")
    if length <= window:
        return [0]
    gaps = math.ceil((length - window) / (window - overlap))
    return [round(i * (length - window) / gaps) for i in range(gaps + 1)]


def blend_weights(starts: list[int], window: int, length: int) -> Tensor:
    """Weight of every pixel of every window on an axis, float32 ``[len(starts), min(window, length)]``.

    A raised cosine falls from the middle of each overlap to the edge of the window, where a convolution sees least
    context; over all windows the weights of one pixel sum to 1, and a pixel seen once has exactly 1. The weight in two
    dimensions is the product of the two axes'.
    """
    window = min(window, length)
    raw = torch.ones(len(starts), window, dtype=torch.float64)
    for i, (left, right) in enumerate(pairwise(starts)):
        shared = left + window - right
        if shared <= 0:
            continue
        position = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared
        rise = 0.5 - 0.5 * torch.cos(math.pi * position)
        raw[i, window - shared :] *= 1 - rise
        raw[i + 1, :shared] *= rise
    total = torch.zeros(length, dtype=torch.float64)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + window] += weights
    return torch.stack([w / total[s : s + window] for s, w in zip(starts, raw, strict=True)]).float()


class OpenRows:
    """The rows of a raster that windows may still write to; older ones are handed on and forgotten.

    Memory is ``channels x open rows x width``, whatever the height of the raster.
    """

    def __init__(self, channels: int, width: int, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        self._rows = torch.zeros(channels, 0, width, dtype=dtype, device=device)
        self._first = 0

    def view(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``, ``[channels, stop - start, width]``, writable; new rows start as zeros."""
        if start < self._first:
            raise IndexError(f"row {start} was handed on already; the first open row is {self._first}")
        missing = stop - self._first - self._rows.shape[1]
        if missing > 0:
            fresh = self._rows.new_zeros(self._rows.shape[0], missing, self._rows.shape[2])
            self._rows = torch.cat([self._rows, fresh], dim=1)
        return self._rows[:, start - self._first : stop - self._first]

    def forget(self, stop: int) -> None:
        """Drop every row before ``stop``."""
        if stop > self._first:
            self._rows = self._rows[:, stop - self._first :].clone()
            self._first = stop
