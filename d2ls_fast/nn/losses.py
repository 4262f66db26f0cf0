"""The training loss: soft cross-entropy and dice on the logits, auxiliary cross-entropy, contrastive term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.nn.classifier import PixelScores
from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE, labels_on_grid
from d2ls_fast.nn.distributed import join_batches, sum_over_processes
from d2ls_fast.nn.diversity import prototype_diversity
from d2ls_fast.ops._segmentation import Compat, SegmentationSums, segmentation_means, segmentation_sums_of_logits

Contrast = Literal["ratio", "pixels", "none"]


class TrainingOutput(Protocol):
    """The part of a model's training output that the loss reads.

    An output may also have ``intermediate``, ``pixels``, ``dictionary`` and ``grid`` as
    :class:`~d2ls_fast.models.head.D2LSOutput` has them; the terms that need them are left out where it has not.
    """

    @property
    def logits(self) -> Tensor | PixelScores: ...

    @property
    def aux_logits(self) -> Tensor | PixelScores | None: ...

    @property
    def contrastive(self) -> Tensor | None: ...


class D2LSLoss(nn.Module):
    r"""What D2LS trains on.

    ``ce(logits) + dice_weight * dice(logits) + auxiliary_weight * ce(aux_logits)
    + intermediate_weight * mean(ce(stage) for stage in intermediate) + contrastive_weight * contrastive
    + diversity_weight * diversity(dictionary)``

    with ce = :func:`~d2ls_fast.nn.segmentation.soft_cross_entropy` and dice =
    :func:`~d2ls_fast.nn.segmentation.dice_loss`. Terms the output does not have are left out.

    In training mode, where ``torch.distributed`` runs, every process gets the loss of all batches joined, and gradients
    whose mean over the processes (DDP, FSDP) is that loss's: see :mod:`d2ls_fast.nn.distributed`.

    Args:
        smoothing: label smoothing of all cross-entropies, in [0, 1).
        dice_weight: weight of the dice term; 0 leaves it out.
        dice_smooth: its smoothing constant.
        auxiliary_weight: weight of the cross-entropy on ``aux_logits``; 0 leaves it out.
        intermediate_weight: weight of the mean cross-entropy over the stages' ``intermediate``; 0 leaves it out.
        contrastive: ``ratio``, the output's own :func:`~d2ls_fast.ops.ratio_contrast` over the dynamic dictionary;
            ``pixels``, :class:`~d2ls_fast.nn.contrast.PixelDictionaryInfoNCE` between its refined pixels and its
            dictionary, each pixel labelled as the centre of its 4 x 4 block; ``none``.
        contrastive_weight: weight of that term; 0 leaves it out.
        nce: the settings of ``pixels``; by default its own.
        diversity_weight: weight of :func:`~d2ls_fast.nn.diversity.prototype_diversity` of the dictionary that
            classified, for models of several prototypes a class; 0 leaves it out.
        align: bring logits of another size to the target's, bilinearly, as forks do that label at another size.
        class_weights: one weight per class for all cross-entropies.
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
        intermediate_weight: float = 0.0,
        contrastive: Contrast = "ratio",
        nce: PixelDictionaryInfoNCE | None = None,
        diversity_weight: float = 0.0,
        align: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        for name, value in (
            ("dice_weight", dice_weight),
            ("dice_smooth", dice_smooth),
            ("auxiliary_weight", auxiliary_weight),
            ("intermediate_weight", intermediate_weight),
            ("contrastive_weight", contrastive_weight),
            ("diversity_weight", diversity_weight),
            *((f"class_weights[{i}]", w) for i, w in enumerate(class_weights or ())),
        ):
            if not value >= 0.0:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name, choice, choices in (("compat", compat, Compat), ("contrastive", contrastive, Contrast)):
            if choice not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {choice!r}")
        self.smoothing = smoothing
        self.dice_weight = dice_weight
        self.dice_smooth = dice_smooth
        self.auxiliary_weight = auxiliary_weight
        self.intermediate_weight = intermediate_weight
        self.contrastive = contrastive
        self.contrastive_weight = contrastive_weight
        self.diversity_weight = diversity_weight
        self.align = align
        self.ignore_index = ignore_index
        self.compat: Compat = compat
        self.nce = (nce or PixelDictionaryInfoNCE(ignore_index=ignore_index)) if contrastive == "pixels" else None
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
            total (differentiable scalar) and the terms ``cross_entropy``, ``dice``, ``auxiliary``, ``intermediate``,
            ``contrastive``, ``diversity`` as they enter it: detached, already weighted, adding up to the total.

        Raises:
            ValueError: target and logits, or class weights and classes, do not fit.
        """
        logits = self._aligned(output if isinstance(output, (Tensor, PixelScores)) else output.logits, target)
        self._check(logits, target)
        auxiliary = self._given(output, "aux_logits", self.auxiliary_weight)
        stages = self._given(output, "intermediate", self.intermediate_weight) or ()
        without_dice = [*([] if auxiliary is None else [auxiliary]), *stages]
        sums = [self._sums(self._aligned(each, target), target, with_dice=False) for each in without_dice]
        (cross_entropy, dice), *others = self._means([self._sums(logits, target, self.dice_weight > 0), *sums])
        terms = {"cross_entropy": cross_entropy}
        if self.dice_weight:
            terms["dice"] = self.dice_weight * dice
        means = [mean for mean, _ in others]
        if auxiliary is not None:
            terms["auxiliary"] = self.auxiliary_weight * means[0]
        if stages:
            terms["intermediate"] = self.intermediate_weight * torch.stack(means[-len(stages) :]).mean()
        contrastive = self._contrastive(output, target)
        if contrastive is not None:
            terms["contrastive"] = self.contrastive_weight * contrastive
        dictionary = self._given(output, "dictionary", self.diversity_weight)
        if dictionary is not None:
            joined = join_batches(dictionary) if self.training else dictionary
            diversity = prototype_diversity(joined, dictionary.shape[1] // logits.shape[1])
            terms["diversity"] = self.diversity_weight * diversity
        total = torch.stack(list(terms.values())).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    @staticmethod
    def _given(output: Any, name: str, weight: float) -> Any:
        """A part of the output, None where it has no such part or the part has no weight."""
        return getattr(output, name, None) if weight else None

    def _contrastive(self, output: Any, target: Tensor) -> Tensor | None:
        if self.nce is None:
            return self._given(output, "contrastive", self.contrastive_weight * (self.contrastive == "ratio"))
        pixels, dictionary, grid = (
            self._given(output, name, self.contrastive_weight) for name in ("pixels", "dictionary", "grid")
        )
        if dictionary is None or grid is None:
            return None
        labels = labels_on_grid(target, grid, ignore_index=self.ignore_index)
        contrastive: Tensor = self.nce(pixels, dictionary, labels)
        return contrastive

    def _aligned(self, logits: Tensor | PixelScores, target: Tensor) -> Tensor | PixelScores:
        """``logits`` of the target's size, where they are to be."""
        if not self.align or tuple(logits.shape[-2:]) == tuple(target.shape[-2:]):
            return logits
        whole = logits.logits() if isinstance(logits, PixelScores) else logits
        return F.interpolate(whole, size=target.shape[-2:], mode="bilinear", align_corners=False)

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
