"""Soft cross-entropy and dice as few sums over pixels: the sums from logits, and the losses from the sums.

The sums may as well come from a kernel that never forms logits, whose definition and backward stand here too; what
follows is the same for both. Sums of the parts of a batch add up to those of the batch, the losses do not.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast.ops._classify import classify_definition
from d2ls_fast.ops._classify import plain_backward as classify_plain_backward

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


def segmentation_sums_definition(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    prototypes: int,
    reduction: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch, through the logits: cross-entropy, a sum; overlap, volume and count ``[K]``."""
    _check_labels(target, hyper.shape[1] // prototypes, ignore_index)
    logits = classify_definition(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps)
    logits = logits[..., : target.shape[1], : target.shape[2]]
    with torch.autocast(image.device.type, enabled=False):
        total = cross_entropy_sum(logits, target, class_weights, smoothing, ignore_index)
        return (total, *dice_sums(logits, target, ignore_index))


def plain_backward(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    prototypes: int,
    reduction: str,
    eps: float,
    grad_cross_entropy: Tensor,
    grad_overlap: Tensor,
    grad_volume: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward formulas in PyTorch, for machines without the compiled extension; recomputes the forward."""
    options, dtype = (prototypes, reduction, eps), hyper.dtype
    logits = classify_definition(image.to(dtype), norm_weight, norm_bias, hyper, *options)
    (height, width), (rows, columns) = target.shape[1:], logits.shape[2:]
    p = logits[..., :height, :width].softmax(1)
    k = p.shape[1]
    weights = p.new_ones(k) if class_weights is None else class_weights
    labelled = target != ignore_index
    labels = target.where(labelled, 0)
    truth = F.one_hot(labels, k).movedim(-1, 1).to(dtype)
    own = (1 - smoothing) * weights[labels].unsqueeze(1)
    every = smoothing / k * weights
    grad = grad_cross_entropy * (p * (own + every.sum()) - own * truth - every.view(-1, 1, 1))
    by_p = grad_volume.view(-1, 1, 1) + grad_overlap.view(-1, 1, 1) * truth
    grad = (grad + p * (by_p - (p * by_p).sum(1, keepdim=True))) * labelled.unsqueeze(1)
    grad = F.pad(grad, (0, columns - width, 0, rows - height))
    return classify_plain_backward(image, norm_weight, norm_bias, hyper, grad, *options)


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    expected = f"target must hold classes from 0 to {classes - 1} or ignore_index {ignore_index}"
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        torch._assert_async(~wrong.any(), expected)  # no wait for the device, no graph break
    elif wrong.any():
        raise ValueError(f"segmentation_loss: {expected}, got the label {int(target[wrong][0])}")
