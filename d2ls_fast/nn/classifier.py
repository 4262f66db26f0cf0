"""From refined pixels and dictionary to class scores: upsampler, hypernetwork, logits, labels or the loss."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from d2ls_fast.ops._segmentation import Compat, SegmentationSums
from d2ls_fast.ops.classify import PrototypeReduction, classify, classify_labels
from d2ls_fast.ops.segmentation_loss import segmentation_loss, segmentation_sums

__all__ = ["PixelClassifier", "PixelScores", "PrototypeReduction"]


class PixelScores(NamedTuple):
    """Logits that have not been computed yet: what :func:`~d2ls_fast.ops.classify.classify` makes them from.

    Labels and loss come from here without the logits ever being stored. ``size`` is (H, W) of the logits, at most
    (4h, 4w) of the grid (h, w); the rest is cropped from the bottom and the right.
    """

    pixels: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    class_vectors: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    prototypes: int
    reduction: PrototypeReduction
    eps: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, K, H, W), the shape of the logits."""
        return (self.pixels.shape[0], self.class_vectors.shape[1] // self.prototypes, *self.size)

    def cropped(self, size: tuple[int, int]) -> PixelScores:
        """The first H rows and W columns."""
        return self._replace(size=size)

    def logits(self) -> Tensor:
        """``[B, K, H, W]``, float32 (float64 for float64)."""
        logits = classify(*self[:4], self.grid, self.prototypes, self.reduction, self.eps)
        return logits[..., : self.size[0], : self.size[1]]

    def labels(self, return_confidence: bool = False) -> tuple[Tensor, Tensor | None]:
        """The class of every pixel, and its confidence: :func:`~d2ls_fast.ops.classify.classify_labels`."""
        prototypes, reduction, eps = self.prototypes, self.reduction, self.eps
        return classify_labels(*self[:4], self.grid, self.size, return_confidence, prototypes, reduction, eps)

    def segmentation_loss(
        self,
        target: Tensor,
        smoothing: float = 0.05,
        dice_smooth: float = 0.05,
        class_weights: Tensor | None = None,
        ignore_index: int = 255,
        compat: Compat = "corrected",
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice: :func:`~d2ls_fast.ops.segmentation_loss.segmentation_loss`.

        Raises:
            ValueError: target is not ``[B, H, W]`` with the size of the logits, or as that function.
        """
        self._check_target(target)
        return segmentation_loss(
            *self[:4],
            target,
            self.grid,
            smoothing,
            dice_smooth,
            class_weights,
            ignore_index,
            compat,
            self.prototypes,
            self.reduction,
            self.eps,
        )

    def segmentation_sums(
        self, target: Tensor, smoothing: float = 0.05, class_weights: Tensor | None = None, ignore_index: int = 255
    ) -> SegmentationSums:
        """What the two losses are made from: :func:`~d2ls_fast.ops.segmentation_loss.segmentation_sums`.

        Raises:
            ValueError: as :meth:`segmentation_loss`.
        """
        self._check_target(target)
        options = (self.prototypes, self.reduction, self.eps)
        return segmentation_sums(*self[:4], target, self.grid, smoothing, class_weights, ignore_index, *options)

    def _check_target(self, target: Tensor) -> None:
        if target.shape[1:] != self.size:
            b, _, height, width = self.shape
            raise ValueError(f"target must be {[b, height, width]} as the scores are, got {tuple(target.shape)}")


class PixelClassifier(nn.Module):
    r"""Score every full-resolution pixel against every class.

    Upsampler: PixelShuffle(2) -> LayerNorm over C/4 (eps 1e-6) -> GELU -> PixelShuffle(2) -> GELU gives U ``[C/16]``
    per full-resolution pixel; every stride-4 pixel makes its own 4 x 4 block and no neighbour is read. Hypernetwork:
    :math:`g = \mathrm{MLP}(D)`, C -> C -> C -> C/16. Score: :math:`g \cdot U`; with P prototypes a class its P scores
    are reduced by ``logsumexp``, ``max`` or ``mean``.

    Args:
        num_classes: K.
        embed_dim: C, a multiple of 16.
        prototypes: P, dictionary entries per class (class-major rows).
        prototype_reduction: how a class's P scores become one.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 256,
        prototypes: int = 1,
        prototype_reduction: PrototypeReduction = "logsumexp",
    ) -> None:
        super().__init__()
        if embed_dim < 16 or embed_dim % 16:
            raise ValueError(f"embed_dim must be a multiple of 16, got {embed_dim}")
        reductions = get_args(PrototypeReduction)
        if prototype_reduction not in reductions:
            raise ValueError(f"prototype_reduction must be one of {', '.join(reductions)}, got {prototype_reduction!r}")
        self.num_classes = num_classes
        self.prototypes = prototypes
        self.prototype_reduction = prototype_reduction
        self.norm = nn.LayerNorm(embed_dim // 4, eps=1e-6)
        self.hypernetwork = nn.ModuleList(
            (nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim // 16))
        )

    def forward(self, pixels: Tensor, dictionary: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits of every class.

        Args:
            pixels: ``[B, h * w, C]``, pixel-major.
            dictionary: ``[B, K * P, C]``.
            grid: (h, w), the stride-4 grid.

        Returns:
            ``[B, K, 4h, 4w]``, float32 (float64 for float64).
        """
        return self.scores(pixels, dictionary, grid).logits()

    def scores(self, pixels: Tensor, dictionary: Tensor, grid: tuple[int, int]) -> PixelScores:
        """The same logits, not yet computed; arguments as for :meth:`forward`."""
        vectors, norm, size = self._class_vectors(dictionary), self.norm, (4 * grid[0], 4 * grid[1])
        options = (self.prototypes, self.prototype_reduction, norm.eps)
        return PixelScores(pixels, norm.weight, norm.bias, vectors, grid, size, *options)

    @torch.no_grad()
    def predict(
        self,
        pixels: Tensor,
        dictionary: Tensor,
        grid: tuple[int, int],
        size: tuple[int, int],
        return_confidence: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Labels and their confidence; the full logits never exist.

        Args:
            pixels, dictionary, grid: as for :meth:`forward`.
            size: (H, W) of the result, at most (4h, 4w); the rest is cropped from the bottom and the right.
            return_confidence: whether the confidence is wanted.

        Returns:
            labels ``[B, H, W]`` (uint8, int16 above 256 classes) and confidence, the largest softmax probability,
            ``[B, H, W]`` float32, or None.
        """
        return self.scores(pixels, dictionary, grid).cropped(size).labels(return_confidence)

    def _class_vectors(self, dictionary: Tensor) -> Tensor:
        """g, ``[B, K * P, C/16]``."""
        with torch.autocast(dictionary.device.type, enabled=False):
            first, second, third = self.hypernetwork
            return third(second(first(dictionary).relu()).relu())
