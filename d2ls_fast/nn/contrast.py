"""Contrastive terms: the release's ratio over the dictionary, and pixel-dictionary InfoNCE."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.nn.distributed import join_batches, sum_over_processes
from d2ls_fast.ops.pixel_dictionary_nce import Direction, NceSums, check_options, nce_mean, nce_sums
from d2ls_fast.ops.ratio_contrast import ratio_contrast

LabelReduction = Literal["nearest", "majority"]


class RatioContrastiveLoss(nn.Module):
    """Pull an entry's versions across the batch together, push different entries apart.

    The formula is that of :func:`d2ls_fast.ops.ratio_contrast`. In training mode the batch is that of all processes
    together, where ``torch.distributed`` runs: each must bring equally many images.

    Args:
        eps: added to the denominator; positive and finite.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, dictionary: Tensor) -> Tensor:
        """``[B, K, C]`` -> scalar, at least float32."""
        return ratio_contrast(join_batches(dictionary) if self.training else dictionary, self.eps)


class PixelDictionaryInfoNCE(nn.Module):
    """Every pixel feature is close to the dictionary entry of its class and far from the others.

    The formula is that of :func:`d2ls_fast.ops.pixel_dictionary_nce`. In training mode its means are over the batches
    of all processes together, where ``torch.distributed`` runs. With full-resolution labels::

        output = model(images)                       # training mode
        term = loss(output.pixels, output.dictionary, labels_on_grid(target))

    Args:
        temperature: tau, positive and finite.
        ignore_index: label of pixels that take no part.
        balanced: in the pixel direction, average within each class first, so that every class present counts the same.
        direction: ``pixels``, ``dictionary`` or ``both``.
        prototypes: P, dictionary entries per class (class-major rows).

    Raises:
        ValueError: an option is not of that kind.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        ignore_index: int = 255,
        balanced: bool = False,
        direction: Direction = "pixels",
        prototypes: int = 1,
    ) -> None:
        super().__init__()
        check_options(temperature, direction, prototypes)
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.balanced = balanced
        self.direction: Direction = direction
        self.prototypes = prototypes

    def forward(self, pixels: Tensor, dictionary: Tensor, target: Tensor) -> Tensor:
        """The loss; zero, with zero gradients, where no pixel is labelled.

        Args:
            pixels: ``[B, N, C]``.
            dictionary: ``[B, K * P, C]``.
            target: labels of the same pixels, ``[B, N]`` or ``[B, h, w]`` with ``h * w = N``, int64.

        Returns:
            scalar, at least float32.
        """
        sums = nce_sums(
            pixels,
            dictionary,
            target.flatten(1),
            self.temperature,
            self.ignore_index,
            self.direction,
            self.prototypes,
        )
        if self.training:
            sums = NceSums(*sum_over_processes(sums))
        return nce_mean(sums, self.balanced, self.direction)


def labels_on_grid(
    target: Tensor,
    grid: tuple[int, int] | None = None,
    stride: int = 4,
    ignore_index: int = 255,
    reduction: LabelReduction = "nearest",
) -> Tensor:
    """Full-resolution labels at the coarser grid on which pixel features live.

    Args:
        target: ``[B, H, W]``, int64.
        grid: (h, w) of the features, ``ceil(H / stride), ceil(W / stride)`` unless given; give the features' own where
            the image was padded, as the model pads images to a multiple of 32. Cells without a label get ignore_index.
        stride: edge of a cell in pixels.
        ignore_index: the label of padding.
        reduction: ``nearest`` takes the pixel at the centre of a cell (below and right of it for an even stride),
            ``majority`` the commonest label of the cell, ignore_index and padding included; the smallest of equals.

    Returns:
        ``[B, h, w]``, int64.

    Raises:
        ValueError: an argument is not of that kind.
    """
    if target.dim() != 3 or 0 in target.shape:
        raise ValueError(f"labels_on_grid: target must be [B, H, W], not empty, got {tuple(target.shape)}")
    if stride < 1:
        raise ValueError(f"labels_on_grid: stride must be at least 1, got {stride}")
    if reduction not in get_args(LabelReduction):
        names = ", ".join(get_args(LabelReduction))
        raise ValueError(f"labels_on_grid: reduction must be one of {names}, got {reduction!r}")
    height, width = target.shape[1:]
    h, w = (-(-height // stride), -(-width // stride)) if grid is None else grid
    if h * stride < height or w * stride < width:
        raise ValueError(f"labels_on_grid: grid must cover {(height, width)} pixels at stride {stride}, got {(h, w)}")
    if reduction == "nearest":
        rows, columns = (_centres(n, stride, size, target.device) for n, size in ((h, height), (w, width)))
        return F.pad(target[:, rows[:, None], columns], (0, w - len(columns), 0, h - len(rows)), value=ignore_index)
    target = F.pad(target, (0, w * stride - width, 0, h * stride - height), value=ignore_index)
    cells = target.unflatten(2, (w, stride)).unflatten(1, (h, stride)).transpose(2, 3).flatten(3)
    return torch.mode(cells, dim=-1).values


def _centres(cells: int, stride: int, size: int, device: torch.device) -> Tensor:
    """Where the centres of the cells that hold pixels lie; in a cell cut off by the border, at most its last pixel."""
    return torch.arange(stride // 2, cells * stride, stride, device=device)[: -(-size // stride)].clamp_max(size - 1)
