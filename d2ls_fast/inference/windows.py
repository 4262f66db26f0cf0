"""Overlapping windows along an axis, and their blending weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from d2ls_fast.data.resample import AxisResampler
from d2ls_fast.errors import UserError

Blend = Literal["cosine", "gaussian", "none"]
GRAIN = 4096
"""Weights of an axis are whole multiples of 1 / GRAIN and sum to exactly 1. A weight of both axes then has 24 bits, its
product with a float32 probability 48, and float64 holds the sum of such products without rounding: where all windows
agree, their blend is what they agree on, bit for bit."""


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


def blend_weights(starts: Sequence[int], window: int, length: int, blend: Blend = "cosine") -> Tensor:
    """Weight of every pixel of every window on an axis, float32 ``[len(starts), min(window, length)]``.

    The weights of one pixel, over all windows that see it, sum to exactly 1; see :data:`GRAIN`. The weight in two
    dimensions is the product of the two axes'.

    Args:
        blend: ``cosine`` falls as a raised cosine from the inner end of each overlap to the edge of the window, where a
            convolution sees least context; ``gaussian`` falls from the centre with a standard deviation of an eighth of
            the window; ``none`` takes every pixel from the window whose centre is nearest.

    Raises:
        UserError: an unknown ``blend``.
    """
    if blend not in get_args(Blend):
        raise UserError(f"blend {blend!r}: no such way of blending windows; take {', '.join(get_args(Blend))}")
    window = min(window, length)
    raw = _RAW[blend](starts, window)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + window] += weights
    return _in_grains(starts, [w / total[s : s + window] for s, w in zip(starts, raw, strict=True)], length)


def _in_grains(starts: Sequence[int], weights: Sequence[Tensor], length: int) -> Tensor:
    """The weights rounded down to grains; what a pixel then lacks goes to the window that counts most there."""
    window = len(weights[0])
    grains = torch.stack([(each * GRAIN).floor() for each in weights])
    lacking = torch.full((length,), float(GRAIN), dtype=torch.float64)
    most = torch.zeros(length, dtype=torch.float64)
    for start, each in zip(starts, grains, strict=True):
        place = slice(start, start + window)
        lacking[place] -= each
        most[place] = torch.maximum(most[place], each)
    for start, each in zip(starts, grains, strict=True):
        place = slice(start, start + window)
        given = torch.where(each == most[place], lacking[place], 0.0)
        each += given
        lacking[place] -= given
    return (grains / GRAIN).float()


def _cosine(starts: Sequence[int], window: int) -> Tensor:
    raw = torch.ones(len(starts), window, dtype=torch.float64)
    for i, (left, right) in enumerate(pairwise(starts)):
        shared = left + window - right
        if shared > 0:
            position = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared
            rise = 0.5 - 0.5 * torch.cos(math.pi * position)
            raw[i, window - shared :] *= 1 - rise
            raw[i + 1, :shared] *= rise
    return raw


def _gaussian(starts: Sequence[int], window: int) -> Tensor:
    position = (torch.arange(window, dtype=torch.float64) + 0.5) / window - 0.5
    return torch.exp(-0.5 * (8 * position) ** 2).repeat(len(starts), 1)


def _nearest(starts: Sequence[int], window: int) -> Tensor:
    raw = torch.ones(len(starts), window, dtype=torch.float64)
    for i, (left, right) in enumerate(pairwise(starts)):
        cut = (left + right + window) // 2  # halfway between the two centres
        raw[i, max(0, cut - left) :] = 0
        raw[i + 1, : max(0, cut - right)] = 0
    return raw


_RAW: dict[str, Callable[[Sequence[int], int], Tensor]] = {
    "cosine": _cosine,
    "gaussian": _gaussian,
    "none": _nearest,
}


class Axis:
    """One axis of a scene, on the scene's own pixels and on the model's, and the windows along it.

    Args:
        source: pixels of the scene.
        scale: model pixels per pixel of the scene.
        window, overlap: in model pixels.
        blend: see :func:`blend_weights`.
        grid: windows start and end at multiples of so many model pixels, which must divide ``window``. The axis then
            ends at one too: ``length`` counts the pixels that repeat the last one of the scene.
    """

    def __init__(self, source: int, scale: float, window: int, overlap: int, blend: Blend, grid: int = 1) -> None:
        self.source = source
        self.content = max(1, round(source * scale))
        steps = math.ceil(self.content / grid)
        self.length, self.grid = steps * grid, grid
        self.window = min(window, self.length)
        self.starts = [grid * start for start in window_starts(steps, window // grid, math.ceil(overlap / grid))]
        self.weights = blend_weights(self.starts, window, self.length, blend)
        self.into = AxisResampler(source, self.content)
        self.back = AxisResampler(self.content, source)

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.starts)

    def end(self, number: int) -> int:
        """The model pixel after window ``number``."""
        return self.starts[number] + self.window

    def inside(self, number: int) -> tuple[int, int]:
        """The model pixels (first, end) of window ``number`` that lie in the scene."""
        return self.starts[number], min(self.end(number), self.content)

    def owned(self, number: int) -> tuple[int, int]:
        """The model pixels (first, end) that are window ``number``'s alone: overlaps are cut in the middle, on the
        grid."""
        cuts = [(left + right + self.window) // 2 // self.grid * self.grid for left, right in pairwise(self.starts)]
        bounds = [0, *cuts, self.length]
        return bounds[number], bounds[number + 1]

    def read(self, number: int) -> tuple[int, int]:
        """The scene's pixels (first, end) that window ``number`` is made of."""
        return self.into.span(*self.inside(number))

    def finished(self, count: int) -> int:
        """How many pixels of the scene, from the first, are final once the first ``count`` windows are in."""
        return self.source if count == len(self) else self.back.ready(self.starts[count]) if count else 0

    def needed(self, count: int) -> int:
        """The first model pixel that is still needed once the first ``count`` windows are in."""
        return self.length if count == len(self) else self.back.span(*_next(self.finished(count)))[0]

    def before(self, number: int) -> int:
        """The first window whose part in what is not finished before window ``number`` must be known to go on there."""
        needed, finished = self.needed(number), self.finished(number)
        return next(i for i in range(number + 1) if self.end(i) > needed or self.read(i)[1] > finished)


def _next(pixel: int) -> tuple[int, int]:
    return pixel, pixel + 1
