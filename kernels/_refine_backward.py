"""Device code of ``refine`` and ``refine_attend``, backward: attend and the norm undone, then softmax and products."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._attend_backward import _probabilities
from ._refine_tiles import (
    add_update,
    entry_weights,
    head_rows,
    head_softmax_backward,
    load_bias,
    load_columns,
    load_vector,
    normalise,
)
from ._tiles import load_tile, positioned, product, store_tile


@triton.jit(do_not_specialize=["num_pixels", "heads", "entries", "num_queries", "chunks", "tiles_per_chunk"])
def refine_grad_total(
    pixels, pe, key, key_bias, value, out_bias, norm_weight, norm_bias, query, grad, lse, delta, grad_refined,
    grad_total, grad_pe, part_vectors, part_query,
    num_pixels, heads, entries, num_queries, chunks, tiles_per_chunk, eps,
    C: tl.constexpr, PE_SHARED: tl.constexpr, NEED_PE: tl.constexpr, ATTEND: tl.constexpr, ONE_BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of u = x + A value + out_bias for one chunk of pixels, and its part of four parameter gradients.

    With ATTEND the gradient that attend sends to x' joins grad_refined first (its way through the encoding goes to
    grad_pe as well), and grad_query is summed. part_vectors: gradients of out_bias, norm_weight and norm_bias.
    """
    program = tl.program_id(0)
    chunk = program % chunks
    batch = (program // chunks).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    image = batch * num_pixels * C
    pixels += image
    grad_refined += image
    grad_total += image
    if NEED_PE:
        grad_pe += image
    if not PE_SHARED:
        pe += image
    key += batch * num_rows * C
    value += batch * num_rows * C
    key_bias += batch * num_rows
    rows, in_head = head_rows(0, heads, entries, BLOCK_J, PADDED)
    k = load_tile(key, rows, num_rows, columns, C)
    value_t = load_columns(value, rows, num_rows, columns, C)
    c = load_bias(key_bias, rows, in_head, num_rows)
    if ATTEND:
        j = tl.arange(0, BLOCK_Q)
        row = batch * num_queries
        q = load_tile(query + row * C, j, num_queries, columns, C)
        g = load_tile(grad + row * C, j, num_queries, columns, C)
        grad_query = tl.zeros([BLOCK_Q, BLOCK_C], dtype=tl.float32)
    grad_out_bias = tl.zeros([BLOCK_C], dtype=tl.float32)
    grad_norm_weight = tl.zeros([BLOCK_C], dtype=tl.float32)
    grad_norm_bias = tl.zeros([BLOCK_C], dtype=tl.float32)

    first = chunk * tiles_per_chunk * BLOCK_N
    last = tl.minimum(first + tiles_per_chunk * BLOCK_N, num_pixels)
    for n0 in range(first, last, BLOCK_N):
        start = tl.cast(n0, tl.int64) * C
        n_left = num_pixels - n0
        x = load_tile(pixels + start, n, n_left, columns, C)
        p = load_tile(pe + start, n, n_left, columns, C)
        total = tl.trans(x).to(tl.float32) + load_vector(out_bias, columns, C)
        total = add_update(
            total, positioned(x, p), key, value, key_bias, k, value_t, c, heads, entries,
            C, ONE_BLOCK, BLOCK_J, BLOCK_N, BLOCK_C, PADDED, PRECISION,
        )  # fmt: skip
        normal, inverse_sigma = normalise(total, columns, eps, C)
        weight = load_vector(norm_weight, columns, C)
        gradient = tl.trans(load_tile(grad_refined + start, n, n_left, columns, C)).to(tl.float32)
        if ATTEND:
            x = tl.trans((normal * weight + load_vector(norm_bias, columns, C)).to(x.dtype))
            y = positioned(x, p)
            empty = tl.zeros([BLOCK_Q, BLOCK_N], dtype=tl.float32)
            scores = product(q, tl.trans(y), empty, PRECISION)
            grad_probs = product(g, tl.trans(x), empty, PRECISION)
            probs, grad_scores = _probabilities(
                scores, grad_probs, n, n_left, j, num_queries, lse + row, delta + row
            )  # fmt: skip
            grad_scores = grad_scores.to(x.dtype)
            grad_query = product(grad_scores, y, grad_query, PRECISION)
            if NEED_PE:
                through = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
                through = product(tl.trans(q), grad_scores, through, PRECISION)
                store_tile(grad_pe + start, tl.trans(through), n, n_left, columns, C)
                gradient += through
            else:
                gradient = product(tl.trans(q), grad_scores, gradient, PRECISION)
            gradient = product(tl.trans(g), probs.to(x.dtype), gradient, PRECISION)
        grad_norm_bias += tl.sum(gradient, 1)
        grad_norm_weight += tl.sum(gradient * normal, 1)
        gradient *= weight
        mean = tl.sum(gradient, 0) / C
        slope = tl.sum(gradient * normal, 0) / C
        gradient = (gradient - mean[None, :] - normal * slope[None, :]) * inverse_sigma[None, :]
        grad_out_bias += tl.sum(gradient, 1)
        store_tile(grad_total + start, tl.trans(gradient.to(x.dtype)), n, n_left, columns, C)

    part = batch * chunks + chunk
    part_vectors += part * 3 * C
    tl.store(part_vectors + columns, grad_out_bias, mask=columns < C)
    tl.store(part_vectors + C + columns, grad_norm_weight, mask=columns < C)
    tl.store(part_vectors + 2 * C + columns, grad_norm_bias, mask=columns < C)
    if ATTEND:
        store_tile(part_query + part * num_queries * C, grad_query, j, num_queries, columns, C)


@triton.jit
def _score_gradients(
    k, v, c, y, grad_total,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A and dz [BLOCK_J, BLOCK_N] of one block of rows and one tile of pixels."""
    weights = entry_weights(k, c, y, BLOCK_J, BLOCK_N, PADDED, PRECISION)
    empty = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32)
    grad_weights = product(v, tl.trans(grad_total), empty, PRECISION)
    return weights, head_softmax_backward(weights, grad_weights, BLOCK_J, BLOCK_N, PADDED)


@triton.jit
def _store_grad_pixels(
    grad_pixels, grad_pe, grad_total, through, n, n_left, columns,
    C: tl.constexpr, NEED_PE: tl.constexpr, ADD_PE: tl.constexpr,
):  # fmt: skip
    """du + dz^T key to grad_pixels; dz^T key to grad_pe, added to what attend left there with ADD_PE."""
    through = tl.trans(through)
    store_tile(grad_pixels, grad_total.to(tl.float32) + through, n, n_left, columns, C)
    if NEED_PE:
        if ADD_PE:
            through += load_tile(grad_pe, n, n_left, columns, C).to(tl.float32)
        store_tile(grad_pe, through, n, n_left, columns, C)


@triton.jit(do_not_specialize=["num_pixels", "heads", "entries", "chunks", "tiles_per_chunk"])
def refine_grad_rows(
    pixels, pe, key, key_bias, value, grad_pixels, grad_pe, part_key, part_value, part_bias,
    num_pixels, heads, entries, chunks, tiles_per_chunk,
    C: tl.constexpr, PE_SHARED: tl.constexpr, NEED_PE: tl.constexpr, ADD_PE: tl.constexpr, WITH_PIXELS: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of key, value and key_bias of one block of rows over one chunk of pixels.

    grad_pixels holds the gradient of u. WITH_PIXELS (all rows in one block, so that no other program reads the tile)
    also replaces it by the gradient of the pixels.
    """
    blocks = (heads * PADDED + BLOCK_J - 1) // BLOCK_J
    program = tl.program_id(0)
    j0 = program % blocks * BLOCK_J
    chunk = program // blocks % chunks
    batch = (program // (blocks * chunks)).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    image = batch * num_pixels * C
    pixels += image
    grad_pixels += image
    if NEED_PE:
        grad_pe += image
    if not PE_SHARED:
        pe += image
    rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
    k = load_tile(key + batch * num_rows * C, rows, num_rows, columns, C)
    v = load_tile(value + batch * num_rows * C, rows, num_rows, columns, C)
    c = load_bias(key_bias + batch * num_rows, rows, in_head, num_rows)

    grad_key = tl.zeros([BLOCK_J, BLOCK_C], dtype=tl.float32)
    grad_value = tl.zeros([BLOCK_J, BLOCK_C], dtype=tl.float32)
    grad_bias = tl.zeros([BLOCK_J], dtype=tl.float32)
    first = chunk * tiles_per_chunk * BLOCK_N
    last = tl.minimum(first + tiles_per_chunk * BLOCK_N, num_pixels)
    for n0 in range(first, last, BLOCK_N):
        start = tl.cast(n0, tl.int64) * C
        n_left = num_pixels - n0
        y = positioned(
            load_tile(pixels + start, n, n_left, columns, C), load_tile(pe + start, n, n_left, columns, C)
        )  # fmt: skip
        grad_total = load_tile(grad_pixels + start, n, n_left, columns, C)
        weights, grad_scores = _score_gradients(k, v, c, y, grad_total, BLOCK_J, BLOCK_N, PADDED, PRECISION)
        grad_bias += tl.sum(grad_scores, 1)
        grad_scores = grad_scores.to(y.dtype)
        grad_key = product(grad_scores, y, grad_key, PRECISION)
        grad_value = product(weights.to(y.dtype), grad_total, grad_value, PRECISION)
        if WITH_PIXELS:
            through = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
            through = product(tl.trans(k), grad_scores, through, PRECISION)
            _store_grad_pixels(
                grad_pixels + start, grad_pe + start if NEED_PE else grad_pe, grad_total, through, n, n_left, columns,
                C, NEED_PE, ADD_PE,
            )  # fmt: skip

    part = (batch * chunks + chunk) * num_rows
    store_tile(part_key + part * C, grad_key, rows, num_rows, columns, C)
    store_tile(part_value + part * C, grad_value, rows, num_rows, columns, C)
    tl.store(part_bias + part + rows, grad_bias, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_pixels", "heads", "entries"])
def refine_grad_pixels(
    pixels, pe, key, key_bias, value, grad_pixels, grad_pe, num_pixels, heads, entries,
    C: tl.constexpr, PE_SHARED: tl.constexpr, NEED_PE: tl.constexpr, ADD_PE: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of u in grad_pixels replaced by that of the pixels, for one tile of pixels, over blocks of rows."""
    tiles = (num_pixels + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    n0 = program % tiles * BLOCK_N
    batch = (program // tiles).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    n_left = num_pixels - n0
    num_rows = heads * entries
    start = (batch * num_pixels + n0) * C
    if NEED_PE:
        grad_pe += start
    if PE_SHARED:
        pe += n0.to(tl.int64) * C
    else:
        pe += start
    y = positioned(load_tile(pixels + start, n, n_left, columns, C), load_tile(pe, n, n_left, columns, C))
    grad_total = load_tile(grad_pixels + start, n, n_left, columns, C)
    through = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    for j0 in range(0, heads * PADDED, BLOCK_J):
        rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
        k = load_tile(key + batch * num_rows * C, rows, num_rows, columns, C)
        v = load_tile(value + batch * num_rows * C, rows, num_rows, columns, C)
        c = load_bias(key_bias + batch * num_rows, rows, in_head, num_rows)
        _, grad_scores = _score_gradients(k, v, c, y, grad_total, BLOCK_J, BLOCK_N, PADDED, PRECISION)
        through = product(tl.trans(k), grad_scores.to(y.dtype), through, PRECISION)
    _store_grad_pixels(grad_pixels + start, grad_pe, grad_total, through, n, n_left, columns, C, NEED_PE, ADD_PE)
