"""Soft cross-entropy and dice as few sums over pixels: the sums from logits, and the losses from the sums.

The sums may as well come from a kernel that never forms logits; what follows is the same for both.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Compat = Literal["corrected", "release"]


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
    labels = target.flatten(1).unsqueeze(1)  # [B, 1, N]
    classes = torch.arange(probability.shape[1], device=labels.device).view(1, -1, 1)
    labelled = labels != ignore_index
    truth = (labels == classes) & labelled
    count = truth.sum((0, 2)).to(probability.dtype)
    return (probability * truth).sum((0, 2)), (probability * labelled).sum((0, 2)), count


def mean_cross_entropy(total: Tensor, labelled: Tensor, pixels: int, compat: Compat) -> Tensor:
    """``corrected``: over the labelled pixels, each counted as often as its class's weight says; ``release``: over all.

    Args:
        total: the sum.
        labelled: number of labelled pixels, or the sum of their classes' weights.
        pixels: all, ignored ones included.
        compat: which mean.
    """
    if compat == "release":
        return total / pixels
    return total / labelled.clamp_min(torch.finfo(total.dtype).tiny)


def mean_dice(overlap: Tensor, volume: Tensor, count: Tensor, smooth: float, compat: Compat) -> Tensor:
    """One minus soft dice, averaged over the classes present (``corrected``) or all (``release``)."""
    present = count > 0
    loss = (1 - (2 * overlap + smooth) / (volume + count + smooth).clamp_min(1e-7)).where(present, 0.0).sum()
    return loss / (present.numel() if compat == "release" else present.sum().clamp_min(1))
