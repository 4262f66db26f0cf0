"""Soft cross-entropy and dice of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from d2ls_fast.ops._segmentation import Compat, cross_entropy_sum, dice_sums, mean_cross_entropy, mean_dice


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    compat: Compat = "corrected",
) -> Tensor:
    r"""Cross-entropy with label smoothing.

    Per labelled pixel :math:`-(1 - \epsilon) \log p_y - \frac{\epsilon}{K} \sum_k \log p_k`, each term times its
    class's weight where weights are given. ``corrected`` divides the sum by the labelled pixels (their weights' sum),
    ``release`` by all pixels, ignored ones included.

    Args:
        logits: ``[B, K, H, W]``.
        target: int64 ``[B, H, W]``.
        smoothing: epsilon in [0, 1).
        class_weights: ``[K]``.
        ignore_index: label that takes no part.
        compat: which mean.

    Returns:
        scalar, at least float32; zero with zero gradients when no pixel is labelled.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = _wide(logits)
        total = cross_entropy_sum(logits, target, class_weights, smoothing, ignore_index)
        labelled = target != ignore_index
        if class_weights is None:
            weight = labelled.sum().to(total)
        else:
            weight = torch.where(labelled, class_weights.to(logits)[target.where(labelled, 0)], 0.0).sum()
        return mean_cross_entropy(total, weight, target.numel(), compat)


def dice_loss(
    logits: Tensor, target: Tensor, smooth: float = 0.05, ignore_index: int = 255, compat: Compat = "corrected"
) -> Tensor:
    r"""Soft dice over the whole batch, one per class.

    .. math:: 1 - \frac{2 \sum_n p_{nk} t_{nk} + s}{\sum_n p_{nk} + \sum_n t_{nk} + s}

    over labelled pixels, with p the softmax and t the one-hot target. Classes without a target pixel add nothing;
    ``corrected`` averages over the classes present, ``release`` divides by all K classes.

    Args:
        logits: ``[B, K, H, W]``.
        target: int64 ``[B, H, W]``.
        smooth: s.
        ignore_index: label that takes no part.
        compat: which mean.

    Returns:
        scalar, at least float32; zero with zero gradients when no pixel is labelled.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return mean_dice(*dice_sums(_wide(logits), target, ignore_index), smooth, compat)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
