"""Device code of ``segmentation_sums``, forward: the losses' sums over a chunk of tiles, logits only on chip."""

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
def load_labels(target, y, x0, width, target_height, target_width, ignore_index, BLOCK_N: tl.constexpr):
    """Labels of the sub-pixels of a tile, ignore_index beyond the target; target points at the image."""
    row, column, real = image_positions(y, x0, width, BLOCK_N)
    inside = real & (row < target_height) & (column < target_width)
    return tl.load(target + row.to(tl.int64) * target_width + column, mask=inside, other=ignore_index)


@triton.jit
def class_probabilities(
    scores, classes, prototypes, BLOCK_K: tl.constexpr, PADDED: tl.constexpr, REDUCTION: tl.constexpr
):
    """(softmax over the classes, -log softmax), [16 * BLOCK_N, BLOCK_K], both zero in padded classes."""
    real = (tl.arange(0, BLOCK_K) < classes)[None, :]
    logits = reduce_prototypes(scores, prototypes, BLOCK_K, PADDED, REDUCTION)
    logits = tl.where(real, logits, float("-inf"))
    shifted = logits - tl.max(logits, 1)[:, None]
    powers = tl.exp(shifted)
    total = tl.sum(powers, 1)[:, None]
    return powers / total, tl.where(real, tl.log(total) - shifted, 0.0)


@triton.jit(do_not_specialize=[
    "height", "width", "classes", "prototypes", "target_height", "target_width", "ignore_index", "chunks",
    "tiles_per_chunk",
])  # fmt: skip
def segmentation_sums(
    pixels, norm_weight, norm_bias, hyper, target, class_weights, part_sums, part_counts,
    height, width, classes, prototypes, target_height, target_width, ignore_index, chunks, tiles_per_chunk,
    smoothing, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, U: tl.constexpr, BLOCK_K: tl.constexpr, PADDED: tl.constexpr,
    REDUCTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """part_sums: overlap, volume, then the cross-entropy; part_counts: pixels of each class, then wrong labels."""
    program = tl.program_id(0)
    chunk = program % chunks
    batch = (program // chunks).to(tl.int64)
    tiles = (width + BLOCK_N - 1) // BLOCK_N
    pixels += batch * height * width * C
    target += batch * target_height * target_width
    hyper += batch * classes * prototypes * (C // 16)
    weight = load_norm(norm_weight, C, U)
    bias = load_norm(norm_bias, C, U)
    vectors, _rows = load_hyper(hyper, 0, classes, prototypes, C, U, BLOCK_K, PADDED)
    k = tl.arange(0, BLOCK_K)
    weights = tl.load(class_weights + k, mask=k < classes, other=0.0)
    overlap = tl.zeros([BLOCK_K], dtype=tl.float32)
    volume = tl.zeros([BLOCK_K], dtype=tl.float32)
    count = tl.zeros([BLOCK_K], dtype=tl.int32)
    cross_entropy = tl.zeros([16 * BLOCK_N], dtype=tl.float32)
    wrong = tl.zeros([16 * BLOCK_N], dtype=tl.int32)

    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles * height)):
        x0 = tile % tiles * BLOCK_N
        y = tile // tiles
        start = (tl.cast(y, tl.int64) * width + x0) * C
        normal, _ = normal_tile(pixels + start, width - x0, eps, C, BLOCK_N, U)
        features = to_rows(gelu(gelu(normal * weight + bias)), BLOCK_N, U)
        scores = class_scores(features, vectors, PRECISION)
        probability, loss = class_probabilities(scores, classes, prototypes, BLOCK_K, PADDED, REDUCTION)
        labels = load_labels(target, y, x0, width, target_height, target_width, ignore_index, BLOCK_N)
        labelled = (labels != ignore_index) & (labels >= 0) & (labels < classes)
        truth = labelled[:, None] & (labels[:, None] == k[None, :])
        own = tl.sum(tl.where(truth, loss * weights[None, :], 0.0), 1)
        every = tl.sum(loss * weights[None, :], 1)
        cross_entropy += tl.where(labelled, (1 - smoothing) * own + smoothing / classes * every, 0.0)
        wrong += ((labels != ignore_index) & ~labelled).to(tl.int32)
        overlap += tl.sum(tl.where(truth, probability, 0.0), 0)
        volume += tl.sum(tl.where(labelled[:, None], probability, 0.0), 0)
        count += tl.sum(truth.to(tl.int32), 0)

    part = batch * chunks + chunk
    part_sums += part * (2 * classes + 1)
    part_counts += part * (classes + 1)
    tl.store(part_sums + k, overlap, mask=k < classes)
    tl.store(part_sums + classes + k, volume, mask=k < classes)
    tl.store(part_sums + 2 * classes, tl.sum(cross_entropy, 0))
    tl.store(part_counts + k, count, mask=k < classes)
    tl.store(part_counts + classes, tl.sum(wrong, 0))
