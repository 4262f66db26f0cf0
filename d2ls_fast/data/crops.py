"""Where training crops are cut, and how they are put together to the size that is trained on.

Every draw comes from the given ``torch.Generator``: the same generator state gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from d2ls_fast.data.palettes import IGNORE_INDEX
from d2ls_fast.data.transforms import AugmentSettings

LabelArray = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width."""
Box = tuple[int, int, int, int]
"""Top, left, height and width."""
Piece = tuple[Tensor, Tensor]
"""Image float32 [C, h, w] and labels int64 [h, w]."""


def choose_scale(settings: AugmentSettings, generator: torch.Generator) -> float:
    """One of ``settings.scales``."""
    return settings.scales[int(torch.randint(len(settings.scales), (), generator=generator))]


def choose_crop(
    scene: Size,
    labels: Callable[[Box], LabelArray],
    crop: Size,
    scale: float,
    settings: AugmentSettings,
    generator: torch.Generator,
) -> Box:
    """A random box of ``crop / scale`` pixels of the scene (or the whole side where the scene is shorter).

    Drawn up to ``crop_tries`` times until no class exceeds ``largest_class`` of the labelled pixels and some are
    labelled; of the boxes that fail, the one with the smallest largest class is used.

    Args:
        scene: size of the scene.
        labels: gives the labels in a box of it; asked only for the boxes drawn.
        crop: size of the crop after scaling.
    """
    window = tuple(min(before_scaling(side, scale), length) for side, length in zip(crop, scene, strict=True))
    best: Box | None = None
    best_share = float("inf")
    for _ in range(settings.crop_tries):
        top = int(torch.randint(scene[0] - window[0] + 1, (), generator=generator))
        left = int(torch.randint(scene[1] - window[1] + 1, (), generator=generator))
        box = (top, left, window[0], window[1])
        share = _largest_share(labels(box))
        if share < best_share:
            best, best_share = box, share
        if share <= settings.largest_class:
            break
    assert best is not None
    return best


def before_scaling(side: int, scale: float) -> int:
    """Pixels of the scene that ``side`` pixels of the crop are made of."""
    return max(1, round(side / scale))


def after_scaling(box: Box, crop: Size, scale: float) -> Size:
    """Size of the cut ``box`` after scaling: exactly ``crop`` for a full window, despite rounding."""
    height, width = (
        side if length == before_scaling(side, scale) else min(side, max(1, round(length * scale)))
        for length, side in zip(box[2:], crop, strict=True)
    )
    return height, width


def place(image: Tensor, labels: Tensor, size: Size, generator: torch.Generator) -> Piece:
    """Image and labels, at most ``size``, somewhere on a canvas of that size; see :func:`pad`."""
    slack = size[0] - labels.shape[0], size[1] - labels.shape[1]
    top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in slack)
    return pad(image, labels, size, (top, left))


def pad(image: Tensor, labels: Tensor, size: Size, corner: tuple[int, int] = (0, 0)) -> Piece:
    """Put image and labels at ``corner`` of a ``size`` canvas of zeros (the mean of a normalised image) and
    unlabelled pixels.

    Labels are class indices by now: padding is never a class.
    """
    height, width = labels.shape
    if (height, width) == size:
        return image, labels
    top, left = corner
    margins = (left, size[1] - width - left, top, size[0] - height - top)
    return F.pad(image, margins, value=0.0), F.pad(labels, margins, value=IGNORE_INDEX)


def mosaic(side: int, piece: Callable[[Size], Piece], generator: torch.Generator) -> Piece:
    """Four pieces joined at a random point to a square of ``side`` pixels.

    As in the release, the point lies in the middle half of both axes. The pieces come from ``piece(size)`` in the order
    upper left, upper right, lower left, lower right.
    """
    margin = side // 4
    row, column = (margin + int(torch.randint(side - 2 * margin + 1, (), generator=generator)) for _ in range(2))
    sizes = [(height, width) for height in (row, side - row) for width in (column, side - column)]
    pieces = [piece(size) for size in sizes]
    images, labels = zip(*pieces, strict=True)
    return (
        torch.cat([torch.cat(images[:2], dim=-1), torch.cat(images[2:], dim=-1)], dim=-2),
        torch.cat([torch.cat(labels[:2], dim=-1), torch.cat(labels[2:], dim=-1)], dim=-2),
    )


def _largest_share(labels: LabelArray) -> float:
    """Share of the most frequent class among labelled pixels; 2.0 where no pixel is labelled."""
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    total = int(counts.sum())
    return float(counts.max()) / total if total else 2.0
