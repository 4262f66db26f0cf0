"""From refined pixels and dictionary to class scores: upsampler, hypernetwork, logits or labels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PrototypeReduction = Literal["logsumexp", "max", "mean"]

# Upper bound on the scores (entries x full-resolution pixels) that predict() holds at once: 16 MB in float32.
_CHUNK_SCORES = 4 * 1024 * 1024


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
        return _to_image(self._scores(pixels, self._class_vectors(dictionary)), grid)

    @torch.no_grad()
    def predict(
        self, pixels: Tensor, dictionary: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Labels and their confidence, band of rows by band of rows: the full logits never exist.

        Args:
            pixels, dictionary, grid: as for :meth:`forward`.
            size: (H, W) of the result, at most (4h, 4w); the rest is cropped from the bottom and the right.

        Returns:
            labels ``[B, H, W]`` (uint8, int16 above 256 classes) and confidence, the largest softmax probability,
            ``[B, H, W]`` float32.
        """
        (h, w), batch = grid, pixels.shape[0]
        vectors = self._class_vectors(dictionary)
        label_type = torch.uint8 if self.num_classes <= 256 else torch.int16
        labels = torch.empty(batch, 4 * h, 4 * w, dtype=label_type, device=pixels.device)
        confidence = torch.empty(batch, 4 * h, 4 * w, dtype=torch.float32, device=pixels.device)
        rows = max(1, _CHUNK_SCORES // (16 * w * dictionary.shape[1]))
        for image in range(batch):
            for first in range(0, h, rows):
                last = min(first + rows, h)
                band = pixels[image : image + 1, first * w : last * w]
                scores = self._scores(band, vectors[image : image + 1])
                best, label = scores.max(-1, keepdim=True)
                probability = torch.exp(best - scores.logsumexp(-1, keepdim=True))
                here = (image, slice(4 * first, 4 * last))
                labels[here] = _to_image(label.to(label_type), (last - first, w))[0, 0]
                confidence[here] = _to_image(probability.float(), (last - first, w))[0, 0]
        return labels[:, : size[0], : size[1]].contiguous(), confidence[:, : size[0], : size[1]].contiguous()

    def _class_vectors(self, dictionary: Tensor) -> Tensor:
        """g, ``[B, K * P, C/16]``."""
        with torch.autocast(dictionary.device.type, enabled=False):
            first, second, third = self.hypernetwork
            return third(second(first(dictionary).relu()).relu())

    def _scores(self, pixels: Tensor, vectors: Tensor) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, 4, 4, K]``: the outer 2 x 2 block (first shuffle), then the inner one.

        PixelShuffle splits channel ``c * 4 + i * 2 + j`` into channel c of sub-pixel (i, j). Both shuffles stay inside
        a stride-4 pixel, so they are only views of its channels and no image-shaped tensor is formed.
        """
        dtype = torch.promote_types(pixels.dtype, torch.float32)
        outer = F.gelu(self.norm(pixels.unflatten(-1, (-1, 4)).transpose(-1, -2)))  # [B, N, 4, C/4]
        inner = F.gelu(outer.unflatten(-1, (-1, 4)).transpose(-1, -2))  # [B, N, 4, 4, C/16]
        with torch.autocast(pixels.device.type, enabled=False):
            rows = inner.to(dtype).flatten(1, 3)
            scores = (rows @ vectors.to(dtype).transpose(-1, -2)).unflatten(1, (-1, 4, 4))
        return self._reduce(scores) if self.prototypes > 1 else scores

    def _reduce(self, scores: Tensor) -> Tensor:
        by_class = scores.unflatten(-1, (self.num_classes, self.prototypes))
        if self.prototype_reduction == "logsumexp":
            return by_class.logsumexp(-1)
        return by_class.amax(-1) if self.prototype_reduction == "max" else by_class.mean(-1)


def _to_image(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[B, h * w, 4, 4, K]`` -> ``[B, K, 4h, 4w]``; row = 4 y + 2 (outer i) + (inner i), columns likewise."""
    h, w = grid
    blocks = values.unflatten(3, (2, 2)).unflatten(2, (2, 2)).unflatten(1, (h, w))  # [B, h, w, i1, j1, i2, j2, K]
    return blocks.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)
