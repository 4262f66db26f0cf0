"""What the refine kernels share: rows of whole heads, the softmax within heads, the normalised update of a tile.

Everything is dictionary-major: pixels are the columns of scores [rows, BLOCK_N] and of updates [BLOCK_C, BLOCK_N].
The entries of a head are laid out in PADDED places. As long as they fit in a block that is the next power of two, so
that a block of rows holds whole heads and a reshape gives the softmax its groups; otherwise PADDED is a multiple of
BLOCK_J, a block is part of one head, and a first sweep over the head's blocks finds what the softmax divides by.
BLOCK_C holds all channels.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import LOG2E, load_tile, product

# Arguments whose values the kernels are not compiled for.
COUNTS = [
    "images", "dictionaries", "num_pixels", "heads", "entries", "num_queries", "chunks", "tiles_per_chunk",
]  # fmt: skip


@triton.jit
def place(program, dictionaries, images, chunks):
    """(image, chunk, dictionary in their stack) of a program; those that share a tile of pixels are neighbours."""
    chunk = program // dictionaries % chunks
    image = (program // (dictionaries * chunks)).to(tl.int64)
    return image, chunk, program % dictionaries * images + image


@triton.jit
def head_rows(j0, heads, entries, BLOCK_J: tl.constexpr, PADDED: tl.constexpr):
    """(row of key and value, or heads * entries for a padded place; whether the place belongs to a head)."""
    place = j0 + tl.arange(0, BLOCK_J)
    head = place // PADDED
    entry = place % PADDED
    rows = tl.where((head < heads) & (entry < entries), head * entries + entry, heads * entries)
    return rows, head < heads


@triton.jit
def load_columns(base, rows, row_limit, columns, C: tl.constexpr):
    """``load_tile`` transposed, [columns, rows]: a left factor that Triton keeps in shared memory over a loop."""
    mask = (rows[None, :] < row_limit) & (columns[:, None] < C)
    return tl.load(base + rows[None, :] * C + columns[:, None], mask=mask, other=0.0)


@triton.jit
def load_bias(bias, rows, in_head, num_rows):
    """Key bias of a block: -inf in the padded places of a head; 0 in padded heads, whose values and gradients are 0."""
    return tl.load(bias + rows, mask=rows < num_rows, other=tl.where(in_head, float("-inf"), 0.0))


@triton.jit
def head_softmax(scores, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr):
    """Softmax of scores [BLOCK_J, BLOCK_N] over the entries of each head."""
    groups = tl.reshape(scores, [BLOCK_J // PADDED, PADDED, BLOCK_N])
    powers = tl.exp2((groups - tl.max(groups, 1)[:, None, :]) * LOG2E)
    return tl.reshape(powers / tl.sum(powers, 1)[:, None, :], [BLOCK_J, BLOCK_N])


@triton.jit
def head_softmax_backward(weights, grad, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr):
    """A (dA - sum over the entries of A dA)."""
    a = tl.reshape(weights, [BLOCK_J // PADDED, PADDED, BLOCK_N])
    weighted = a * tl.reshape(grad, [BLOCK_J // PADDED, PADDED, BLOCK_N])
    return tl.reshape(weighted - a * tl.sum(weighted, 1)[:, None, :], [BLOCK_J, BLOCK_N])


@triton.jit
def entry_weights(
    key, bias, y, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr
):
    """A [BLOCK_J, BLOCK_N]: softmax over each head's entries of key . y + bias, for whole heads."""
    scores = product(key, tl.trans(y), tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32), PRECISION)
    return head_softmax(scores + bias[:, None], BLOCK_J, BLOCK_N, PADDED)


@triton.jit
def part_weights(key, bias, y, top, inverse_sum, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr):
    """``entry_weights`` for a block that is part of a head, whose ``head_statistics`` are known."""
    scores = product(key, tl.trans(y), tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32), PRECISION)
    return tl.exp2((scores + bias[:, None] - top[None, :]) * LOG2E) * inverse_sum[None, :]


@triton.jit
def head_statistics(
    key, value, bias, y, grad_total, head, heads, entries,
    C: tl.constexpr, WITH_GRAD: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Over all blocks of one head, for every pixel: largest score, 1 / sum of the exponentials and sum of A dA."""
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    top = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_N], dtype=tl.float32)
    empty = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32)
    for j0 in range(head * PADDED, head * PADDED + PADDED, BLOCK_J):
        rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
        scores = product(load_tile(key, rows, num_rows, columns, C), tl.trans(y), empty, PRECISION)
        scores += load_bias(bias, rows, in_head, num_rows)[:, None]
        # Every block holds at least one entry, so the new maximum is finite and the first rescale is exp2(-inf) = 0.
        new_top = tl.maximum(top, tl.max(scores, 0))
        rescale = tl.exp2((top - new_top) * LOG2E)
        powers = tl.exp2((scores - new_top[None, :]) * LOG2E)
        total = total * rescale + tl.sum(powers, 0)
        if WITH_GRAD:
            v = load_tile(value, rows, num_rows, columns, C)
            grad_weights = product(v, tl.trans(grad_total), empty, PRECISION)
            weighted = weighted * rescale + tl.sum(powers * grad_weights, 0)
        top = new_top
    return top, 1.0 / total, weighted / total


@triton.jit
def add_update(
    total, y, key, value, bias, k, value_t, c, heads, entries,
    C: tl.constexpr, ONE_BLOCK: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total [BLOCK_C, BLOCK_N] + value^T A; with ONE_BLOCK k, value_t, c are the loaded key, value^T and bias."""
    if ONE_BLOCK:
        weights = entry_weights(k, c, y, BLOCK_J, BLOCK_N, PADDED, PRECISION)
        total = product(value_t, weights.to(y.dtype), total, PRECISION)
    elif PADDED > BLOCK_J:
        columns = tl.arange(0, BLOCK_C)
        num_rows = heads * entries
        for head in range(0, heads):
            top, inverse_sum, _ = head_statistics(
                key, value, bias, y, y, head, heads, entries,
                C, False, BLOCK_J, BLOCK_N, BLOCK_C, PADDED, PRECISION,
            )  # fmt: skip
            for j0 in range(head * PADDED, head * PADDED + PADDED, BLOCK_J):
                rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
                block = load_tile(key, rows, num_rows, columns, C)
                weights = part_weights(
                    block, load_bias(bias, rows, in_head, num_rows), y, top, inverse_sum, BLOCK_J, BLOCK_N, PRECISION
                )
                block = load_columns(value, rows, num_rows, columns, C)
                total = product(block, weights.to(y.dtype), total, PRECISION)
    else:
        columns = tl.arange(0, BLOCK_C)
        num_rows = heads * entries
        for j0 in range(0, heads * PADDED, BLOCK_J):
            rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
            block = load_tile(key, rows, num_rows, columns, C)
            weights = entry_weights(
                block, load_bias(bias, rows, in_head, num_rows), y, BLOCK_J, BLOCK_N, PADDED, PRECISION
            )
            block = load_columns(value, rows, num_rows, columns, C)
            total = product(block, weights.to(y.dtype), total, PRECISION)
    return total


@triton.jit
def normalise(total, columns, eps, C: tl.constexpr):
    """(total - mean) / sigma over the C channels of every pixel, zero in padded channels; and 1 / sigma."""
    real = (columns < C)[:, None]
    mean = tl.sum(tl.where(real, total, 0.0), 0) / C
    centred = tl.where(real, total - mean[None, :], 0.0)
    inverse_sigma = tl.rsqrt(tl.sum(centred * centred, 0) / C + eps)
    return centred * inverse_sigma[None, :], inverse_sigma


@triton.jit
def load_vector(vector, columns, C: tl.constexpr):
    """A vector of C channels as a column [BLOCK_C, 1]."""
    return tl.load(vector + columns, mask=columns < C, other=0.0)[:, None]
