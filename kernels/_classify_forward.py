"""Device code of ``classify``, forward: a tile of pixels to logits, or to labels by a running maximum."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._classify_tiles import (
    class_scores,
    gelu,
    image_positions,
    load_hyper,
    load_norm,
    normal_tile,
    reduce_prototypes,
    to_rows,
)


@triton.jit
def _tile_features(
    pixels, norm_weight, norm_bias, start, n_left, eps, C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr
):
    """U of one tile, as rows."""
    normal, _ = normal_tile(pixels + start * C, n_left, eps, C, BLOCK_N, U)
    outer = normal * load_norm(norm_weight, C, U) + load_norm(norm_bias, C, U)
    return to_rows(gelu(gelu(outer)), BLOCK_N, U)


@triton.jit(do_not_specialize=["height", "width", "classes", "prototypes"])
def classify_logits(
    pixels, norm_weight, norm_bias, hyper, logits, height, width, classes, prototypes, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr, PADDED: tl.constexpr,
    REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of every class for one tile."""
    tiles = (width + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    x0 = program % tiles * BLOCK_N
    y = program // tiles % height
    batch = (program // (tiles * height)).to(tl.int64)
    start = (batch * height + y) * width + x0
    features = _tile_features(pixels, norm_weight, norm_bias, start, width - x0, eps, C, BLOCK_N, U)
    hyper += batch * classes * prototypes * (C // 16)
    row, column, real = image_positions(y, x0, width, BLOCK_N)
    at = row.to(tl.int64) * (4 * width) + column
    for k0 in range(0, classes, BLOCK_K):
        vectors, _ = load_hyper(hyper, k0, classes, prototypes, C, U, BLOCK_K, PADDED)
        scores = class_scores(features, vectors, PRECISION)
        values = tl.trans(reduce_prototypes(scores, prototypes, BLOCK_K, PADDED, REDUCTION))
        k = k0 + tl.arange(0, BLOCK_K)
        plane = (batch * classes + k) * height * width * 16
        tl.store(logits + plane[:, None] + at[None, :], values, mask=(k < classes)[:, None] & real[None, :])


@triton.jit(do_not_specialize=["height", "width", "classes", "prototypes"])
def classify_labels(
    pixels, norm_weight, norm_bias, hyper, labels, confidence, height, width, classes, prototypes, eps,
    CONFIDENCE: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr,
    PADDED: tl.constexpr, REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first class of the largest logit, and its softmax probability, for one tile."""
    tiles = (width + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    x0 = program % tiles * BLOCK_N
    y = program // tiles % height
    batch = (program // (tiles * height)).to(tl.int64)
    start = (batch * height + y) * width + x0
    features = _tile_features(pixels, norm_weight, norm_bias, start, width - x0, eps, C, BLOCK_N, U)
    hyper += batch * classes * prototypes * (C // 16)

    best = tl.full([16 * BLOCK_N], float("-inf"), dtype=tl.float32)
    label = tl.zeros([16 * BLOCK_N], dtype=tl.int32)
    total = tl.zeros([16 * BLOCK_N], dtype=tl.float32)
    for k0 in range(0, classes, BLOCK_K):
        vectors, _ = load_hyper(hyper, k0, classes, prototypes, C, U, BLOCK_K, PADDED)
        scores = class_scores(features, vectors, PRECISION)
        values = reduce_prototypes(scores, prototypes, BLOCK_K, PADDED, REDUCTION)
        k = k0 + tl.arange(0, BLOCK_K)
        values = tl.where((k < classes)[None, :], values, float("-inf"))
        largest, at = tl.max(values, 1, return_indices=True, return_indices_tie_break_left=True)
        label = tl.where(largest > best, k0 + at, label)
        if CONFIDENCE:
            highest = tl.maximum(best, largest)
            total = total * tl.exp(best - highest) + tl.sum(tl.exp(values - highest[:, None]), 1)
        best = tl.maximum(best, largest)

    row, column, real = image_positions(y, x0, width, BLOCK_N)
    at = (batch * height * 4 + row) * (4 * width) + column
    tl.store(labels + at, label, mask=real)
    if CONFIDENCE:
        tl.store(confidence + at, 1.0 / total, mask=real)
