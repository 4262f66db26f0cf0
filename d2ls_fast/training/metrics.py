"""Segmentation scores from one confusion matrix over a whole split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix; fractions in [0, 1].

    A class that neither the truth nor the prediction holds was never seen: its scores are NaN and every mean leaves it
    out. A class of the truth that was never predicted scores 0. ``mean_iou`` and ``mean_f1`` also leave out the
    classes named in ``excluded``; ``overall_accuracy`` and ``matrix`` keep them.

    Attributes:
        iou, f1, precision, recall: one value per class.
        mean_iou, mean_f1, overall_accuracy: over all classes; NaN where no pixel was counted.
        matrix: counts, ``matrix[truth][prediction]``.
        excluded: class indices left out of the means.
    """

    iou: list[float]
    f1: list[float]
    precision: list[float]
    recall: list[float]
    mean_iou: float
    mean_f1: float
    overall_accuracy: float
    matrix: list[list[int]]
    excluded: tuple[int, ...] = ()

    def summary(self) -> dict[str, float]:
        """The three overall scores by name; the ones without a counted pixel are left out."""
        scores = {
            "mean_iou": self.mean_iou,
            "mean_f1": self.mean_f1,
            "overall_accuracy": self.overall_accuracy,
        }
        return {name: value for name, value in scores.items() if not math.isnan(value)}


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs, accumulated over batches and, when distributed, over processes.

    Args:
        num_classes: K; pixels whose truth is outside [0, K) or equals ``ignore_index`` are dropped.
        ignore_index: label that marks pixels without truth.
        exclude: class indices that mean IoU and mean F1 leave out (ISPRS leaves out clutter).

    Raises:
        ValueError: ``num_classes`` < 1 or an excluded index outside [0, K).
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, exclude: Iterable[int] = ()) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.exclude = tuple(sorted(set(exclude)))
        if any(not 0 <= index < num_classes for index in self.exclude):
            raise ValueError(f"excluded classes {self.exclude} must lie in [0, {num_classes})")
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add the pixels of one batch.

        Args:
            predicted: class indices in [0, K), any integer dtype, any shape.
            target: truth of the same shape.

        Raises:
            ValueError: the shapes differ, or a counted pixel is predicted outside [0, K).
        """
        if predicted.shape != target.shape:
            raise ValueError(f"prediction {tuple(predicted.shape)} and truth {tuple(target.shape)} differ in shape")
        valid = (target >= 0) & (target < self.num_classes) & (target != self.ignore_index)
        truth, guess = target[valid].to(torch.int64), predicted[valid].to(torch.int64)
        if guess.numel() and (int(guess.min()) < 0 or int(guess.max()) >= self.num_classes):
            raise ValueError(f"predictions must lie in [0, {self.num_classes})")
        counts = torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)
        self.matrix = self.matrix.to(counts.device) + counts.view(self.num_classes, self.num_classes)

    def reset(self) -> None:
        """Forget all counts."""
        self.matrix = torch.zeros_like(self.matrix)

    def compute(self) -> Scores:
        """Scores of everything counted so far, summed over all processes when ``torch.distributed`` runs."""
        matrix = self.matrix.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            if torch.distributed.get_backend() == "nccl":
                matrix = matrix.cuda()
            torch.distributed.all_reduce(matrix)
        return scores_from_matrix(matrix.cpu().tolist(), self.exclude)


def scores_from_matrix(matrix: Sequence[Sequence[int]], exclude: Iterable[int] = ()) -> Scores:
    """Scores of a K x K matrix of counts ``matrix[truth][prediction]``.

    With tp, fp, fn per class: IoU = tp / (tp + fp + fn), precision = tp / (tp + fp), recall = tp / (tp + fn),
    F1 = 2 precision recall / (precision + recall), overall accuracy = trace / sum.
    """
    excluded = tuple(sorted(set(exclude)))
    classes = range(len(matrix))
    iou, f1, precision, recall = [], [], [], []
    for k in classes:
        hit = matrix[k][k]
        actual, predicted = sum(matrix[k]), sum(row[k] for row in matrix)
        seen = actual + predicted > 0
        p, r = _ratio(hit, predicted, seen), _ratio(hit, actual, seen)
        iou.append(_ratio(hit, actual + predicted - hit, seen))
        precision.append(p)
        recall.append(r)
        f1.append(_ratio(2 * p * r, p + r, seen))
    total = sum(map(sum, matrix))
    return Scores(
        iou=iou,
        f1=f1,
        precision=precision,
        recall=recall,
        mean_iou=_mean(iou, excluded),
        mean_f1=_mean(f1, excluded),
        overall_accuracy=_ratio(sum(matrix[k][k] for k in classes), total, total > 0),
        matrix=[list(row) for row in matrix],
        excluded=excluded,
    )


def _ratio(part: float, whole: float, defined: bool) -> float:
    if not defined:
        return math.nan
    return part / whole if whole else 0.0


def _mean(values: Sequence[float], excluded: tuple[int, ...]) -> float:
    kept = [value for index, value in enumerate(values) if index not in excluded and not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
