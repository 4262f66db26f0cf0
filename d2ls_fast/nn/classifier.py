"""From refined pixels and dictionary to class scores: upsampler, hypernetwork, logits or labels."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from d2ls_fast.ops.classify import PrototypeReduction, classify, classify_labels

__all__ = ["PixelClassifier", "PrototypeReduction"]


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
        vectors = self._class_vectors(dictionary)
        norm, prototypes, reduction = self.norm, self.prototypes, self.prototype_reduction
        return classify(pixels, norm.weight, norm.bias, vectors, grid, prototypes, reduction, norm.eps)

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
        return classify_labels(
            pixels,
            self.norm.weight,
            self.norm.bias,
            self._class_vectors(dictionary),
            grid,
            size,
            return_confidence,
            self.prototypes,
            self.prototype_reduction,
            self.norm.eps,
        )

    def _class_vectors(self, dictionary: Tensor) -> Tensor:
        """g, ``[B, K * P, C/16]``."""
        with torch.autocast(dictionary.device.type, enabled=False):
            first, second, third = self.hypernetwork
            return third(second(first(dictionary).relu()).relu())
