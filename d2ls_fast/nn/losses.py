"""The training loss: soft cross-entropy and dice on the logits, auxiliary cross-entropy, contrastive term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, get_args

import torch
from torch import Tensor, nn

from d2ls_fast.nn.classifier import PixelScores
from d2ls_fast.nn.distributed import sum_over_processes
from d2ls_fast.ops._segmentation import (
    Compat,
    SegmentationSums,
    cross_entropy_sum,
    dice_sums,
    mean_cross_entropy,
    mean_dice,
    segmentation_means,
    segmentation_sums_of_logits,
)


class TrainingOutput(Protocol):
    """The part of a model's training output that the loss reads."""

    @property
    def logits(self) -> Tensor | PixelScores: ...

    @property
    def aux_logits(self) -> Tensor | PixelScores | None: ...

    @property
    def contrastive(self) -> Tensor | None: ...


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


class D2LSLoss(nn.Module):
    r"""What D2LS trains on.

    ``ce(logits) + dice_weight * dice(logits) + auxiliary_weight * ce(aux_logits) + contrastive_weight * contrastive``,
    with ce = :func:`soft_cross_entropy` and dice = :func:`dice_loss`. Terms the output does not have are left out.

    In training mode, where ``torch.distributed`` runs, every process gets the loss of all batches joined, and gradients
    whose mean over the processes (DDP, FSDP) is that loss's: see :mod:`d2ls_fast.nn.distributed`.

    Args:
        smoothing: label smoothing of both cross-entropies, in [0, 1).
        dice_weight: weight of the dice term; 0 leaves it out.
        dice_smooth: its smoothing constant.
        auxiliary_weight: weight of the cross-entropy on ``aux_logits``; 0 leaves it out.
        contrastive_weight: weight of ``contrastive``; 0 leaves it out.
        class_weights: one weight per class for both cross-entropies.
        ignore_index: label that takes no part anywhere.
        compat: ``corrected`` (mean over labelled pixels; absent classes left out of the dice) or ``release``
            (the released code's means: over all pixels, over all classes).

    Source: the D2LS recipe (arXiv 2503.06683), after UNetFormer's loss.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.05,
        dice_weight: float = 1.0,
        dice_smooth: float = 0.05,
        auxiliary_weight: float = 0.4,
        contrastive_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        compat: Compat = "corrected",
    ) -> None:
        super().__init__()
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        for name, value in (
            ("dice_weight", dice_weight),
            ("dice_smooth", dice_smooth),
            ("auxiliary_weight", auxiliary_weight),
            ("contrastive_weight", contrastive_weight),
            *((f"class_weights[{i}]", w) for i, w in enumerate(class_weights or ())),
        ):
            if not value >= 0.0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if compat not in get_args(Compat):
            raise ValueError(f"compat must be one of {', '.join(get_args(Compat))}, got {compat!r}")
        self.smoothing = smoothing
        self.dice_weight = dice_weight
        self.dice_smooth = dice_smooth
        self.auxiliary_weight = auxiliary_weight
        self.contrastive_weight = contrastive_weight
        self.ignore_index = ignore_index
        self.compat: Compat = compat
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        # A setting, not a learned state: checkpoints do not carry it.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, output: TrainingOutput | Tensor | PixelScores, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and its terms.

        Args:
            output: a training output, or its logits alone: ``[B, K, H, W]``, or
                :class:`~d2ls_fast.nn.classifier.PixelScores`, whose logits are then never stored.
            target: int64 ``[B, H, W]``.

        Returns:
            total (differentiable scalar) and the terms ``cross_entropy``, ``dice``, ``auxiliary``, ``contrastive`` as
            they enter it: detached, already weighted, adding up to the total.

        Raises:
            ValueError: target and logits, or class weights and classes, do not fit.
        """
        if isinstance(output, (Tensor, PixelScores)):
            logits, aux_logits, contrastive = output, None, None
        else:
            logits, aux_logits, contrastive = output.logits, output.aux_logits, output.contrastive
        self._check(logits, target)
        sums = [self._sums(logits, target, bool(self.dice_weight))]
        if aux_logits is not None and self.auxiliary_weight:
            sums.append(self._sums(aux_logits, target, False))
        (cross_entropy, dice), *others = self._means(sums)
        terms = {"cross_entropy": cross_entropy}
        if self.dice_weight:
            terms["dice"] = self.dice_weight * dice
        if others:
            terms["auxiliary"] = self.auxiliary_weight * others[0][0]
        if contrastive is not None and self.contrastive_weight:
            terms["contrastive"] = self.contrastive_weight * contrastive
        total = torch.stack(list(terms.values())).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    def _sums(self, logits: Tensor | PixelScores, target: Tensor, with_dice: bool) -> SegmentationSums:
        weights = self.class_weights
        if isinstance(logits, PixelScores):
            return logits.segmentation_sums(target, self.smoothing, weights, self.ignore_index)
        return segmentation_sums_of_logits(logits, target, weights, self.smoothing, self.ignore_index, with_dice)

    def _means(self, sums: list[SegmentationSums]) -> list[tuple[Tensor, Tensor]]:
        """Cross-entropy and dice of each prediction, over the batches of all processes."""
        if self.training:
            flat = sum_over_processes([part for prediction in sums for part in prediction])
            size = len(SegmentationSums._fields)
            sums = [SegmentationSums(*flat[i : i + size]) for i in range(0, len(flat), size)]
        return [segmentation_means(each, self.class_weights, self.dice_smooth, self.compat) for each in sums]

    def _check(self, logits: Tensor | PixelScores, target: Tensor) -> None:
        shape = tuple(logits.shape)
        if len(shape) != 4 or target.shape != (shape[0], *shape[2:]):
            raise ValueError(f"logits [B, K, H, W] and target [B, H, W] do not fit: {shape} and {tuple(target.shape)}")
        if self.class_weights is not None and len(self.class_weights) != shape[1]:
            raise ValueError(
                f"class_weights must hold {shape[1]} weights, one per class, got {len(self.class_weights)}"
            )
