"""``fuse_pyramid`` in Triton: upsampled products of all levels added in one pass, and the adjoint of that.

The products of the maps with their weights are the library's. Forward: the finest product is written where the result
shall be; one kernel adds the bias and the four bilinear taps of up to three coarse products to every pixel, in place
(more levels take another launch). Backward: every pixel of a coarse product sums the fine pixels that took from it, in
their order and without atomics, so that results repeat bit for bit; the library's products do the rest. Sums are
float32.

Shapes: B, C, number and sizes of levels are free; the pixels of one image must be countable in 32 bits. Addresses are
64-bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import configs
from ._fuse_pyramid import pyramid_gather, pyramid_sum
from ._launch import DTYPES, on_device

_LEVELS_PER_LAUNCH = 3


def _check(features: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    dtype = features[0].dtype
    if dtype not in DTYPES or any(t.dtype != dtype for t in (*features, *weights)):
        raise TypeError(
            "fuse_pyramid: features and weights must share one dtype of float32, bfloat16, float16; "
            f"got {[t.dtype for t in (*features, *weights)]}"
        )
    if any(f.dim() != 4 or f.numel() == 0 for f in features):
        raise ValueError(f"fuse_pyramid: features must be [B, c, h, w], got {[tuple(f.shape) for f in features]}")
    shapes = [(weights[0].shape[0], f.shape[1]) for f in features]
    if [tuple(w.shape) for w in weights] != shapes or any(f.shape[0] != features[0].shape[0] for f in features):
        raise ValueError(
            f"fuse_pyramid: shapes do not match: features {[tuple(f.shape) for f in features]}, "
            f"weights {[tuple(w.shape) for w in weights]}"
        )


def _options(name: str, like: Tensor, channels: int) -> dict[str, Any]:
    kind = "ieee" if like.dtype == torch.float32 else "half"
    tile = configs.architecture(like.device).pyramid[name, kind]
    return {
        "C": channels,
        "BLOCK_N": tile.block_n,
        "BLOCK_C": min(tile.block_c, configs.power_of_two(channels)),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }


def _product(feature: Tensor, weight: Tensor) -> Tensor:
    """[B, c, h, w] and [C, c] -> [B, h w, C], whatever the strides of the map."""
    batch = feature.shape[0]
    return torch.bmm(feature.flatten(2).transpose(1, 2), weight.t().expand(batch, *weight.t().shape))


def fuse_pyramid_forward(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Products of all levels, upsampled to the finest and added, plus bias.

    Args:
        features: maps [B, c_i, h_i, w_i], finest first; float32, bfloat16 or float16.
        weights: [C, c_i] for every map, same dtype.
        bias: [C], float32.

    Returns:
        [B, h_0 w_0, C] in the dtype of features.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    _check(features, weights)
    (batch, _, height, width), channels = features[0].shape, weights[0].shape[0]
    fused = _product(features[0], weights[0])
    products = [_product(f, w) for f, w in zip(features[1:], weights[1:], strict=True)]
    sizes = [tuple(f.shape[-2:]) for f in features[1:]]
    options = _options("pyramid_sum", fused, channels)
    programs = batch * triton.cdiv(height * width, options["BLOCK_N"]) * triton.cdiv(channels, options["BLOCK_C"])
    bias = bias.float().contiguous()
    with on_device(fused.device):
        for first in range(0, max(1, len(products)), _LEVELS_PER_LAUNCH):
            here = products[first : first + _LEVELS_PER_LAUNCH]
            absent = _LEVELS_PER_LAUNCH - len(here)
            grids = [size for pair in sizes[first : first + _LEVELS_PER_LAUNCH] for size in pair]
            pyramid_sum[(programs,)](
                fused, bias if first == 0 else torch.zeros_like(bias), *here, *[fused] * absent,
                height, width, *grids, *[1] * (2 * absent), LEVELS=len(here), **options,
            )  # fmt: skip
    return fused


def fuse_pyramid_backward(
    grad_fused: Tensor, features: Sequence[Tensor], weights: Sequence[Tensor], need_features: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients of ``fuse_pyramid_forward``.

    Args:
        grad_fused: gradient of its result, [B, h_0 w_0, C].
        features, weights: what it was given.
        need_features: whether the gradients of the maps are wanted.

    Returns:
        gradients of the maps (none unless wanted) and of the weights, in their shapes and dtype; of bias, float32.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    _check(features, weights)
    (batch, _, height, width), channels = features[0].shape, weights[0].shape[0]
    grad_fused = grad_fused.contiguous()
    options = _options("pyramid_gather", grad_fused, channels)
    slices = triton.cdiv(channels, options["BLOCK_C"])
    grad_features, grad_weights = [], []
    for index, (feature, weight) in enumerate(zip(features, weights, strict=True)):
        rows, columns = feature.shape[-2:]
        grad = grad_fused
        if index > 0:
            grad = torch.empty(batch, rows * columns, channels, dtype=grad_fused.dtype, device=grad_fused.device)
            programs = batch * rows * triton.cdiv(columns, options["BLOCK_N"]) * slices
            with on_device(grad.device):
                pyramid_gather[(programs,)](grad_fused, grad, height, width, rows, columns, **options)
        if need_features:
            grad_feature = torch.bmm(weight.t().expand(batch, *weight.t().shape), grad.transpose(1, 2))
            grad_features.append(grad_feature.view(feature.shape))
        per_image = torch.bmm(grad.transpose(1, 2), feature.flatten(2).transpose(1, 2))
        grad_weights.append(per_image.sum(0, dtype=torch.float32).to(weight.dtype))
    return grad_features, grad_weights, grad_fused.sum((0, 1), dtype=torch.float32)
