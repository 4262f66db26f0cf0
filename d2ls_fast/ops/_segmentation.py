"""Soft cross-entropy and dice as few sums over pixels: the sums from logits, and the losses from the sums.

The sums may as well come from a kernel that never forms logits; what follows is the same for both. Sums of the parts of
a batch add up to those of the batch, the losses do not.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Compat = Literal["corrected", "release"]


class SegmentationSums(NamedTuple):
    """All that both losses need to know of a batch; at least float32.

    cross_entropy, the scalar sum; per class, ``[K]``: overlap, probability on the class's own pixels, volume, on all
    labelled pixels, and support, the number of its pixels; pixels, the scalar number of all, ignored ones included.
    """

    cross_entropy: Tensor
    overlap: Tensor
    volume: Tensor
    support: Tensor
    pixels: Tensor


def segmentation_sums_of_logits(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    with_dice: bool = True,
) -> SegmentationSums:
    """The sums of logits ``[B, K, H, W]``, at least in float32; without dice, overlap and volume stay zero."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = cross_entropy_sum(logits, target, class_weights, smoothing, ignore_index)
        pixels = total.new_full((), target.numel())
        if with_dice:
            return SegmentationSums(total, *dice_sums(logits, target, ignore_index), pixels)
        count = _one_hot(target, logits.shape[1], ignore_index).sum((0, 2)).to(total)
        return SegmentationSums(total, torch.zeros_like(count), torch.zeros_like(count), count, pixels)


def segmentation_means(
    sums: SegmentationSums, class_weights: Tensor | None, dice_smooth: float, compat: Compat
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice."""
    total, overlap, volume, count, pixels = sums
    labelled = (count if class_weights is None else count * class_weights.detach().to(count)).sum()
    cross_entropy = mean_cross_entropy(total, labelled, pixels, compat)
    return cross_entropy, mean_dice(overlap, volume, count, dice_smooth, compat)


def cross_entropy_sum(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    """Cross-entropy with label smoothing, summed over the labelled pixels."""
    weights = None if class_weights is None else class_weights.to(logits)
    return F.cross_entropy(
        logits, target, weights, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum"
    )


def dice_sums(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per class: probability on its own pixels (overlap), on all labelled pixels (volume), number of its pixels."""
    probability = logits.softmax(1).flatten(2)
    truth = _one_hot(target, probability.shape[1], ignore_index)
    labelled = (target != ignore_index).flatten(1).unsqueeze(1)
    count = truth.sum((0, 2)).to(probability.dtype)
    return (probability * truth).sum((0, 2)), (probability * labelled).sum((0, 2)), count


def _one_hot(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Which pixel is labelled with which class, ``[B, K, H * W]``, bool."""
    labels = target.flatten(1).unsqueeze(1)
    return (labels == torch.arange(classes, device=labels.device).view(1, -1, 1)) & (labels != ignore_index)


def mean_cross_entropy(total: Tensor, labelled: Tensor, pixels: Tensor | int, compat: Compat) -> Tensor:
    """``corrected``: over the labelled pixels, each counted as often as its class's weight says; ``release``: over all.

    Args:
        total: the sum.
        labelled: number of labelled pixels, or the sum of their classes' weights.
        pixels: all, ignored ones included.
        compat: which mean.
    """
    if compat == "release":
        return total / pixels
    # Not the smallest number instead of zero: its reciprocal times a loss scale is infinite, and that times zero NaN.
    return total / labelled.where(labelled > 0, 1.0)


def mean_dice(overlap: Tensor, volume: Tensor, count: Tensor, smooth: float, compat: Compat) -> Tensor:
    """One minus soft dice, averaged over the classes present (``corrected``) or all (``release``)."""
    present = count > 0
    loss = (1 - (2 * overlap + smooth) / (volume + count + smooth).clamp_min(1e-7)).where(present, 0.0).sum()
    return loss / (present.numel() if compat == "release" else present.sum().clamp_min(1))
