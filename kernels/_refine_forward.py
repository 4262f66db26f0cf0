"""Device code of ``refine`` and ``refine_attend``, forward: one pass over the pixels."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._refine_tiles import COUNTS, add_update, head_rows, load_bias, load_columns, load_vector, normalise, place
from ._tiles import LOG2E, load_tile, positioned, product, store_tile


@triton.jit(do_not_specialize=COUNTS)
def refine_chunk(
    pixels, pe, key, key_bias, value, out_bias, norm_weight, norm_bias, query,
    refined, part_context, part_max, part_sum,
    images, dictionaries, num_pixels, heads, entries, num_queries, chunks, tiles_per_chunk, eps,
    C: tl.constexpr, PE_SHARED: tl.constexpr, ATTEND: tl.constexpr, ONE_BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x' of one chunk of pixels and one dictionary and, with ATTEND, the running softmax of the query over x' in it."""
    image, chunk, batch = place(tl.program_id(0), dictionaries, images, chunks)
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    pixels += image * num_pixels * C
    refined += batch * num_pixels * C
    if not PE_SHARED:
        pe += image * num_pixels * C
    key += batch * num_rows * C
    value += batch * num_rows * C
    key_bias += batch * num_rows
    rows, in_head = head_rows(0, heads, entries, BLOCK_J, PADDED)
    k = load_tile(key, rows, num_rows, columns, C)
    value_t = load_columns(value, rows, num_rows, columns, C)
    c = load_bias(key_bias, rows, in_head, num_rows)
    if ATTEND:
        j = tl.arange(0, BLOCK_Q)
        query += batch * num_queries * C
        q = load_tile(query, j, num_queries, columns, C)
        running_max = tl.full([BLOCK_Q], float("-inf"), dtype=tl.float32)
        running_sum = tl.zeros([BLOCK_Q], dtype=tl.float32)
        context = tl.zeros([BLOCK_Q, BLOCK_C], dtype=tl.float32)

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
        normal, _ = normalise(total, columns, eps, C)
        shifted = normal * load_vector(norm_weight, columns, C) + load_vector(norm_bias, columns, C)
        x = tl.trans(shifted.to(x.dtype))
        store_tile(refined + start, x, n, n_left, columns, C)
        if ATTEND:
            scores = product(
                q, tl.trans(positioned(x, p)), tl.zeros([BLOCK_Q, BLOCK_N], dtype=tl.float32), PRECISION
            )  # fmt: skip
            scores = tl.where(n[None, :] < n_left, scores, float("-inf"))
            new_max = tl.maximum(running_max, tl.max(scores, 1))
            rescale = tl.exp2((running_max - new_max) * LOG2E)
            # Summed as rounded for the product, so that the context is a true mean and the backward's delta agrees.
            probs = tl.exp2((scores - new_max[:, None]) * LOG2E).to(x.dtype)
            running_sum = running_sum * rescale + tl.sum(probs.to(tl.float32), 1)
            context = product(probs, x, context * rescale[:, None], PRECISION)
            running_max = new_max

    if ATTEND:
        part = (batch * chunks + chunk) * num_queries
        store_tile(part_context + part * C, context, j, num_queries, columns, C)
        tl.store(part_max + part + j, running_max, mask=j < num_queries)
        tl.store(part_sum + part + j, running_sum, mask=j < num_queries)
