"""What the classify and segmentation kernels share: sub-pixel features of a tile, scores by blocks of class vectors.

A tile is BLOCK_N neighbouring pixels of one row of the grid. Channel ``u * 16 + inner * 4 + outer`` is channel u of
the sub-pixel in row ``2 * (outer // 2) + inner // 2`` and column ``2 * (outer % 2) + inner % 2``, and the norm of an
outer sub-pixel runs over (u, inner). A tile comes in two forms: *channels*, [BLOCK_N, U, inner, outer], is the order of
memory; *rows*, [16 * BLOCK_N, U], is one row per sub-pixel in the order of the image (4 image rows of 4 * BLOCK_N), so
that whatever is written per sub-pixel is written in whole lines. U is C/16 padded to a power of two.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import load_tile, product, store_tile

SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def gelu(x):
    return x * (0.5 + 0.5 * tl.erf(x * SQRT_HALF))


@triton.jit
def gelu_slope(x):
    return 0.5 + 0.5 * tl.erf(x * SQRT_HALF) + x * tl.exp(-0.5 * x * x) * INVERSE_SQRT_TWO_PI


@triton.jit
def to_rows(values, BLOCK_N: tl.constexpr, U: tl.constexpr):
    split = tl.reshape(values, [BLOCK_N, U, 2, 2, 2, 2])
    return tl.reshape(tl.permute(split, (4, 2, 0, 5, 3, 1)), [16 * BLOCK_N, U])


@triton.jit
def to_channels(rows, BLOCK_N: tl.constexpr, U: tl.constexpr):
    split = tl.reshape(rows, [2, 2, BLOCK_N, 2, 2, U])
    return tl.reshape(tl.permute(split, (2, 5, 1, 4, 0, 3)), [BLOCK_N, U, 4, 4])


@triton.jit
def image_positions(y, x0, width, BLOCK_N: tl.constexpr):
    """(image row, image column, whether the tile's pixel exists) of every sub-pixel, in the order of rows."""
    r = tl.arange(0, 16 * BLOCK_N)
    column = r % (4 * BLOCK_N)
    return 4 * y + r // (4 * BLOCK_N), 4 * x0 + column, column < 4 * (width - x0)


@triton.jit
def load_norm(vector, C: tl.constexpr, U: tl.constexpr):
    """A vector of the norm, [1, U, inner, 1], zero in padded channels."""
    c = tl.arange(0, 4 * U)
    return tl.reshape(tl.load(vector + c, mask=c < C // 4, other=0.0), [1, U, 4, 1])


@triton.jit
def normal_tile(pixels, n_left, eps, C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr):
    """(x - mean) / sigma as channels, zero in padded ones, and 1 / sigma; pixels points at the tile's first pixel."""
    x = load_tile(pixels, tl.arange(0, BLOCK_N), n_left, tl.arange(0, 16 * U), C)
    x = tl.reshape(x.to(tl.float32), [BLOCK_N, U, 4, 4])
    real = (tl.arange(0, U) < C // 16)[None, :, None, None]
    mean = _norm_mean(x, C)
    centred = tl.where(real, x - mean, 0.0)
    inverse_sigma = tl.rsqrt(_norm_mean(centred * centred, C) + eps)
    return centred * inverse_sigma, inverse_sigma


@triton.jit
def _norm_mean(values, C: tl.constexpr):
    """Mean over the channels of the norm, [BLOCK_N, 1, 1, outer]."""
    return (tl.sum(tl.sum(values, 2), 1) * (4.0 / C))[:, None, None, :]


@triton.jit
def norm_gradient(grad, normal, inverse_sigma, weight, C: tl.constexpr):
    """Gradient of the pixels from that of the norm's result."""
    grad = grad * weight
    return (grad - _norm_mean(grad, C) - normal * _norm_mean(grad * normal, C)) * inverse_sigma


@triton.jit
def store_pixels(pixels, values, n_left, C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr):
    values = tl.reshape(values, [BLOCK_N, 16 * U])
    store_tile(pixels, values, tl.arange(0, BLOCK_N), n_left, tl.arange(0, 16 * U), C)


@triton.jit
def load_hyper(
    hyper, k0, classes, prototypes, C: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr, PADDED: tl.constexpr
):
    """(vectors of a block of classes [BLOCK_K * PADDED, U], zero in padded places; their rows, or K P if padded)."""
    place = tl.arange(0, BLOCK_K * PADDED)
    k = k0 + place // PADDED
    p = place % PADDED
    rows = tl.where((k < classes) & (p < prototypes), k * prototypes + p, classes * prototypes)
    return load_tile(hyper, rows, classes * prototypes, tl.arange(0, U), C // 16), rows


@triton.jit
def class_scores(features, vectors, PRECISION: tl.constexpr):
    """[16 * BLOCK_N, BLOCK_K * PADDED]: every vector's score of every sub-pixel."""
    empty = tl.zeros([features.shape[0], vectors.shape[0]], dtype=tl.float32)
    return product(features, tl.trans(vectors), empty, PRECISION)


@triton.jit
def reduce_prototypes(scores, prototypes, BLOCK_K: tl.constexpr, PADDED: tl.constexpr, REDUCTION: tl.constexpr):
    """[16 * BLOCK_N, BLOCK_K]: the scores of a class's prototypes as one."""
    if PADDED == 1:
        return scores
    else:
        by_class = tl.reshape(scores, [scores.shape[0], BLOCK_K, PADDED])
        if REDUCTION == "mean":
            return tl.sum(by_class, 2) / prototypes
        else:
            real = (tl.arange(0, PADDED) < prototypes)[None, None, :]
            by_class = tl.where(real, by_class, float("-inf"))
            largest = tl.max(by_class, 2)
            if REDUCTION == "max":
                return largest
            else:
                return largest + tl.log(tl.sum(tl.exp(by_class - largest[:, :, None]), 2))


@triton.jit
def spread_gradient(grad, scores, prototypes, BLOCK_K: tl.constexpr, PADDED: tl.constexpr, REDUCTION: tl.constexpr):
    """Gradient of the scores from that of the classes' logits; the largest of equal prototypes share it."""
    if PADDED == 1:
        return grad
    else:
        real = (tl.arange(0, PADDED) < prototypes)[None, None, :]
        by_class = tl.reshape(scores, [scores.shape[0], BLOCK_K, PADDED])
        if REDUCTION == "mean":
            share = tl.where(real, 1.0 / prototypes, tl.zeros_like(by_class))
        else:
            by_class = tl.where(real, by_class, float("-inf"))
            largest = tl.max(by_class, 2)[:, :, None]
            share = tl.where(by_class == largest, 1.0, 0.0) if REDUCTION == "max" else tl.exp(by_class - largest)
            share = share / tl.sum(share, 2)[:, :, None]
        return tl.reshape(grad[:, :, None] * share, [scores.shape[0], BLOCK_K * PADDED])
