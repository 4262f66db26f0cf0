"""Device code of ``classify``, backward: features recomputed; gradients of the pixels and of all that they share."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._classify_tiles import (
    class_scores,
    gelu,
    gelu_slope,
    image_positions,
    load_hyper,
    load_norm,
    norm_gradient,
    normal_tile,
    spread_gradient,
    store_pixels,
    to_channels,
    to_rows,
)
from ._tiles import product, store_tile


@triton.jit
def score_gradient(
    grad_logits, features, vectors, at, real, k0, classes, prototypes, plane,
    BLOCK_K: tl.constexpr, PADDED: tl.constexpr, REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores of one block of classes, [16 * BLOCK_N, BLOCK_K * PADDED], zero in padded places."""
    k = k0 + tl.arange(0, BLOCK_K)
    grad = tl.load(
        grad_logits + k.to(tl.int64)[:, None] * plane + at[None, :],
        mask=(k < classes)[:, None] & real[None, :], other=0.0,
    )  # fmt: skip
    grad = tl.trans(grad)
    if PADDED == 1:
        return grad
    else:
        scores = class_scores(features, vectors, PRECISION)
        return spread_gradient(grad, scores, prototypes, BLOCK_K, PADDED, REDUCTION)


@triton.jit(do_not_specialize=["height", "width", "classes", "prototypes", "chunks", "tiles_per_chunk"])
def classify_grad_pixels(
    pixels, norm_weight, norm_bias, hyper, grad_logits, grad_pixels, part_norm, part_hyper,
    height, width, classes, prototypes, chunks, tiles_per_chunk, eps,
    ONE_BLOCK: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr,
    PADDED: tl.constexpr, REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the pixels of one chunk of tiles, and its part of the norm's: of weight and bias.

    ONE_BLOCK (all class vectors in one block) also sums their gradient.
    """
    program = tl.program_id(0)
    chunk = program % chunks
    batch = (program // chunks).to(tl.int64)
    tiles = (width + BLOCK_N - 1) // BLOCK_N
    plane = height.to(tl.int64) * width * 16
    pixels += batch * height * width * C
    grad_pixels += batch * height * width * C
    grad_logits += batch * classes * plane
    hyper += batch * classes * prototypes * (C // 16)
    weight = load_norm(norm_weight, C, U)
    bias = load_norm(norm_bias, C, U)
    if ONE_BLOCK:
        vectors, rows = load_hyper(hyper, 0, classes, prototypes, C, U, BLOCK_K, PADDED)
        grad_hyper = tl.zeros([BLOCK_K * PADDED, U], dtype=tl.float32)
    grad_weight = tl.zeros([BLOCK_N, U, 4], dtype=tl.float32)
    grad_bias = tl.zeros([BLOCK_N, U, 4], dtype=tl.float32)

    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles * height)):
        x0 = tile % tiles * BLOCK_N
        y = tile // tiles
        start = (tl.cast(y, tl.int64) * width + x0) * C
        normal, inverse_sigma = normal_tile(pixels + start, width - x0, eps, C, BLOCK_N, U)
        outer = normal * weight + bias
        inner = gelu(outer)
        features = to_rows(gelu(inner), BLOCK_N, U)
        row, column, real = image_positions(y, x0, width, BLOCK_N)
        at = row.to(tl.int64) * (4 * width) + column
        grad = tl.zeros([16 * BLOCK_N, U], dtype=tl.float32)
        if ONE_BLOCK:
            grad_scores = score_gradient(
                grad_logits, features, vectors, at, real, 0, classes, prototypes, plane,
                BLOCK_K, PADDED, REDUCTION, PRECISION,
            )  # fmt: skip
            grad = product(grad_scores, vectors, grad, PRECISION)
            grad_hyper = product(tl.trans(grad_scores), features, grad_hyper, PRECISION)
        else:
            for k0 in range(0, classes, BLOCK_K):
                vectors, _ = load_hyper(hyper, k0, classes, prototypes, C, U, BLOCK_K, PADDED)
                grad_scores = score_gradient(
                    grad_logits, features, vectors, at, real, k0, classes, prototypes, plane,
                    BLOCK_K, PADDED, REDUCTION, PRECISION,
                )  # fmt: skip
                grad = product(grad_scores, vectors, grad, PRECISION)
        grad = to_channels(grad, BLOCK_N, U) * gelu_slope(inner) * gelu_slope(outer)
        grad_weight += tl.sum(grad * normal, 3)
        grad_bias += tl.sum(grad, 3)
        grad = norm_gradient(grad, normal, inverse_sigma, weight, C)
        store_pixels(grad_pixels + start, grad, width - x0, C, BLOCK_N, U)

    part = batch * chunks + chunk
    c = tl.arange(0, 4 * U)
    part_norm += part * (C // 2)
    tl.store(part_norm + c, tl.reshape(tl.sum(grad_weight, 0), [4 * U]), mask=c < C // 4)
    tl.store(part_norm + C // 4 + c, tl.reshape(tl.sum(grad_bias, 0), [4 * U]), mask=c < C // 4)
    if ONE_BLOCK:
        num_rows = classes * prototypes
        part_hyper += part * num_rows * (C // 16)
        store_tile(part_hyper, grad_hyper, rows, num_rows, tl.arange(0, U), C // 16)


@triton.jit(do_not_specialize=["height", "width", "classes", "prototypes", "chunks", "tiles_per_chunk"])
def classify_grad_hyper(
    pixels, norm_weight, norm_bias, hyper, grad_logits, part_hyper,
    height, width, classes, prototypes, chunks, tiles_per_chunk, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr,
    PADDED: tl.constexpr, REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of class vectors over one chunk of tiles."""
    blocks = (classes + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    k0 = program % blocks * BLOCK_K
    chunk = program // blocks % chunks
    batch = (program // (blocks * chunks)).to(tl.int64)
    tiles = (width + BLOCK_N - 1) // BLOCK_N
    plane = height.to(tl.int64) * width * 16
    pixels += batch * height * width * C
    grad_logits += batch * classes * plane
    hyper += batch * classes * prototypes * (C // 16)
    weight = load_norm(norm_weight, C, U)
    bias = load_norm(norm_bias, C, U)
    vectors, rows = load_hyper(hyper, k0, classes, prototypes, C, U, BLOCK_K, PADDED)
    grad_hyper = tl.zeros([BLOCK_K * PADDED, U], dtype=tl.float32)

    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles * height)):
        x0 = tile % tiles * BLOCK_N
        y = tile // tiles
        start = (tl.cast(y, tl.int64) * width + x0) * C
        normal, _ = normal_tile(pixels + start, width - x0, eps, C, BLOCK_N, U)
        features = to_rows(gelu(gelu(normal * weight + bias)), BLOCK_N, U)
        row, column, real = image_positions(y, x0, width, BLOCK_N)
        grad_scores = score_gradient(
            grad_logits, features, vectors, row.to(tl.int64) * (4 * width) + column, real, k0, classes, prototypes,
            plane, BLOCK_K, PADDED, REDUCTION, PRECISION,
        )  # fmt: skip
        grad_hyper = product(tl.trans(grad_scores), features, grad_hyper, PRECISION)

    num_rows = classes * prototypes
    part_hyper += (batch * chunks + chunk) * num_rows * (C // 16)
    store_tile(part_hyper, grad_hyper, rows, num_rows, tl.arange(0, U), C // 16)
