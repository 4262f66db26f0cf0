"""Device code of ``refine`` and ``refine_attend``, backward, step 1: attend and the norm undone."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._attend_backward import _probabilities
from ._refine_tiles import COUNTS, add_update, head_rows, load_bias, load_columns, load_vector, normalise, place
from ._tiles import load_tile, positioned, product, store_tile


@triton.jit(do_not_specialize=COUNTS)
def refine_grad_total(
    pixels, pe, key, key_bias, value, out_bias, norm_weight, norm_bias, query, grad, lse, delta, grad_refined,
    grad_total, grad_pe, part_vectors, part_query,
    images, dictionaries, num_pixels, heads, entries, num_queries, chunks, tiles_per_chunk, eps,
    C: tl.constexpr, PE_SHARED: tl.constexpr, NEED_PE: tl.constexpr, ATTEND: tl.constexpr, ONE_BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of u = x + A value + out_bias for one chunk and dictionary; its part of four parameter gradients.

    With ATTEND the gradient that attend sends to x' joins grad_refined first (its way through the encoding goes to
    grad_pe as well), and grad_query is summed. part_vectors: gradients of out_bias, norm_weight and norm_bias.
    """
    image, chunk, batch = place(tl.program_id(0), dictionaries, images, chunks)
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    pixels += image * num_pixels * C
    if not PE_SHARED:
        pe += image * num_pixels * C
    grad_refined += batch * num_pixels * C
    grad_total += batch * num_pixels * C
    if NEED_PE:
        grad_pe += batch * num_pixels * C
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
