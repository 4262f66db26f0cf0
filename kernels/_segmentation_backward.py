"""Device code of ``segmentation_sums``, backward: logits and softmax recomputed, then as the backward of classify."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._classify_tiles import (
    class_scores,
    gelu,
    gelu_slope,
    load_hyper,
    load_norm,
    norm_gradient,
    normal_tile,
    spread_gradient,
    store_pixels,
    to_channels,
    to_rows,
)
from ._segmentation_forward import class_probabilities, load_labels
from ._tiles import product, store_tile


@triton.jit
def _logit_gradient(
    probability, labels, k, weights, grad_cross_entropy, grad_overlap, grad_volume, classes, ignore_index, smoothing
):
    """Gradient of the logits of a tile from those of the sums, zero where there is no label."""
    labelled = (labels != ignore_index) & (labels >= 0) & (labels < classes)
    truth = labelled[:, None] & (labels[:, None] == k[None, :])
    own = (1 - smoothing) * tl.sum(tl.where(truth, weights[None, :], 0.0), 1)
    every = smoothing / classes * weights
    # The first vanishes exactly where the prediction is right, the second for a single class.
    of_label = own[:, None] * (probability - tl.where(truth, 1.0, 0.0))
    of_all = probability * tl.sum(every, 0) - every[None, :]
    grad = grad_cross_entropy * (of_label + of_all)
    by_probability = grad_volume[None, :] + tl.where(truth, grad_overlap[None, :], 0.0)
    mean = tl.sum(probability * by_probability, 1)
    return tl.where(labelled[:, None], grad + probability * (by_probability - mean[:, None]), 0.0)


@triton.jit(do_not_specialize=[
    "height", "width", "classes", "prototypes", "target_height", "target_width", "ignore_index", "chunks",
    "tiles_per_chunk",
])  # fmt: skip
def segmentation_grad(
    pixels, norm_weight, norm_bias, hyper, target, class_weights, grad_cross_entropy, grad_overlap, grad_volume,
    grad_pixels, part_norm, part_hyper,
    height, width, classes, prototypes, target_height, target_width, ignore_index, chunks, tiles_per_chunk,
    smoothing, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr, PADDED: tl.constexpr,
    REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the pixels of one chunk of tiles, and its part of those of the norm and of the class vectors."""
    program = tl.program_id(0)
    chunk = program % chunks
    batch = (program // chunks).to(tl.int64)
    tiles = (width + BLOCK_N - 1) // BLOCK_N
    pixels += batch * height * width * C
    grad_pixels += batch * height * width * C
    target += batch * target_height * target_width
    hyper += batch * classes * prototypes * (C // 16)
    weight = load_norm(norm_weight, C, U)
    bias = load_norm(norm_bias, C, U)
    vectors, rows = load_hyper(hyper, 0, classes, prototypes, C, U, BLOCK_K, PADDED)
    k = tl.arange(0, BLOCK_K)
    weights = tl.load(class_weights + k, mask=k < classes, other=0.0)
    of_cross_entropy = tl.load(grad_cross_entropy)
    of_overlap = tl.load(grad_overlap + k, mask=k < classes, other=0.0)
    of_volume = tl.load(grad_volume + k, mask=k < classes, other=0.0)
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
        scores = class_scores(features, vectors, PRECISION)
        probability, _ = class_probabilities(scores, classes, prototypes, BLOCK_K, PADDED, REDUCTION)
        labels = load_labels(target, y, x0, width, target_height, target_width, ignore_index, BLOCK_N)
        grad_logits = _logit_gradient(
            probability, labels, k, weights, of_cross_entropy, of_overlap, of_volume, classes, ignore_index, smoothing
        )
        grad_scores = spread_gradient(grad_logits, scores, prototypes, BLOCK_K, PADDED, REDUCTION)
        grad_hyper = product(tl.trans(grad_scores), features, grad_hyper, PRECISION)
        grad = product(grad_scores, vectors, tl.zeros([16 * BLOCK_N, U], dtype=tl.float32), PRECISION)
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
    num_rows = classes * prototypes
    store_tile(part_hyper + part * num_rows * (C // 16), grad_hyper, rows, num_rows, tl.arange(0, U), C // 16)
