"""Device code of ``attend``, backward: the scores recomputed, once by tiles of pixels and once by chunks of pixels."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import LOG2E, load_tile, positioned, product, store_tile, tile_products


@triton.jit
def _probabilities(scores, grad_probs, n, n_left, j, j_left, lse, delta):
    """P and dS of one tile, zero outside the matrix (lse = +inf there, and exp of a masked pixel could overflow)."""
    lse_j = tl.load(lse + j, mask=j < j_left, other=float("inf"))
    delta_j = tl.load(delta + j, mask=j < j_left, other=0.0)
    scores = tl.where(n[None, :] < n_left, scores, float("-inf"))
    probs = tl.exp2((scores - lse_j[:, None]) * LOG2E)
    return probs, probs * (grad_probs - delta_j[:, None])


@triton.jit(do_not_specialize=["num_pixels", "num_rows"])
def attend_grad_pixels(
    pixels, pe, query, grad, lse, delta, grad_pixels, grad_pe, num_pixels, num_rows,
    C: tl.constexpr, PE_SHARED: tl.constexpr, NEED_PE: tl.constexpr, ONE_BLOCK: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_pixels (and this image's grad_pe) of one tile of pixels.

    ONE_BLOCK (all query rows in one block): P and dS are formed once and the gradients leave slice by slice, so no wide
    accumulator is alive. Otherwise every program owns one slice of channels and runs over the blocks of rows.
    """
    SLICES: tl.constexpr = 1 if ONE_BLOCK else (C + BLOCK_V - 1) // BLOCK_V
    tiles = (num_pixels + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    n0 = program // SLICES % tiles * BLOCK_N
    batch = (program // (SLICES * tiles)).to(tl.int64)

    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    n_left = num_pixels - n0
    start = (batch * num_pixels + n0) * C
    pixels += start
    grad_pixels += start
    if NEED_PE:
        grad_pe += start
    if PE_SHARED:
        pe += n0.to(tl.int64) * C
    else:
        pe += start
    row = batch * num_rows
    query += row * C
    grad += row * C

    if ONE_BLOCK:
        scores, grad_probs = tile_products(
            pixels, pe, query, grad, n, n_left, j, num_rows, C, BLOCK_J, BLOCK_N, BLOCK_C, True, PRECISION
        )
        probs, grad_scores = _probabilities(scores, grad_probs, n, n_left, j, num_rows, lse + row, delta + row)
        probs_t = tl.trans(probs.to(query.dtype.element_ty))
        grad_scores_t = tl.trans(grad_scores.to(query.dtype.element_ty))
        for v in range(0, C, BLOCK_V):
            columns = v + tl.arange(0, BLOCK_V)
            total = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
            total = product(grad_scores_t, load_tile(query, j, num_rows, columns, C), total, PRECISION)
            if NEED_PE:
                store_tile(grad_pe, total, n, n_left, columns, C)
            total = product(probs_t, load_tile(grad, j, num_rows, columns, C), total, PRECISION)
            store_tile(grad_pixels, total, n, n_left, columns, C)
    else:
        columns = program % SLICES * BLOCK_V + tl.arange(0, BLOCK_V)
        from_scores = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
        from_values = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
        for j0 in range(0, num_rows, BLOCK_J):
            at = tl.cast(j0, tl.int64) * C
            left = num_rows - j0
            scores, grad_probs = tile_products(
                pixels, pe, query + at, grad + at, n, n_left, j, left, C, BLOCK_J, BLOCK_N, BLOCK_C, True, PRECISION
            )
            probs, grad_scores = _probabilities(
                scores, grad_probs, n, n_left, j, left, lse + row + j0, delta + row + j0
            )  # fmt: skip
            q = load_tile(query + at, j, left, columns, C)
            g = load_tile(grad + at, j, left, columns, C)
            from_scores = product(tl.trans(grad_scores.to(q.dtype)), q, from_scores, PRECISION)
            if NEED_PE:
                from_values = product(tl.trans(probs.to(g.dtype)), g, from_values, PRECISION)
            else:
                from_scores = product(tl.trans(probs.to(g.dtype)), g, from_scores, PRECISION)
        if NEED_PE:
            store_tile(grad_pe, from_scores, n, n_left, columns, C)
        store_tile(grad_pixels, from_scores + from_values, n, n_left, columns, C)


@triton.jit(do_not_specialize=["num_pixels", "num_rows", "chunks", "tiles_per_chunk"])
def attend_grad_query(
    pixels, pe, query, grad, lse, delta, part_query, num_pixels, num_rows, chunks, tiles_per_chunk,
    C: tl.constexpr, PE_SHARED: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dS (x + pe) of one block of query rows over one chunk of pixels, one slice of channels."""
    SLICES: tl.constexpr = (C + BLOCK_V - 1) // BLOCK_V
    WHOLE: tl.constexpr = (BLOCK_C >= C) and (BLOCK_V == BLOCK_C)
    row_blocks = (num_rows + BLOCK_J - 1) // BLOCK_J
    program = tl.program_id(0)
    slice_id = program % SLICES
    j0 = program // SLICES % row_blocks * BLOCK_J
    chunk = program // (SLICES * row_blocks) % chunks
    batch = (program // (SLICES * row_blocks * chunks)).to(tl.int64)

    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    columns = slice_id * BLOCK_V + tl.arange(0, BLOCK_V)
    row = batch * num_rows + j0
    j_left = num_rows - j0
    pixels += batch * num_pixels * C
    if not PE_SHARED:
        pe += batch * num_pixels * C
    query += row * C
    grad += row * C
    if WHOLE:
        q = load_tile(query, j, j_left, columns, C)
        g = load_tile(grad, j, j_left, columns, C)

    grad_query = tl.zeros([BLOCK_J, BLOCK_V], dtype=tl.float32)
    first = chunk * tiles_per_chunk * BLOCK_N
    last = tl.minimum(first + tiles_per_chunk * BLOCK_N, num_pixels)
    for n0 in range(first, last, BLOCK_N):
        start = tl.cast(n0, tl.int64) * C
        n_left = num_pixels - n0
        if WHOLE:
            x = load_tile(pixels + start, n, n_left, columns, C)
            key = positioned(x, load_tile(pe + start, n, n_left, columns, C))
            scores = product(q, tl.trans(key), tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32), PRECISION)
            grad_probs = product(g, tl.trans(x), tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32), PRECISION)
        else:
            scores, grad_probs = tile_products(
                pixels + start, pe + start, query, grad, n, n_left, j, j_left,
                C, BLOCK_J, BLOCK_N, BLOCK_C, True, PRECISION,
            )  # fmt: skip
            x = load_tile(pixels + start, n, n_left, columns, C)
            key = positioned(x, load_tile(pe + start, n, n_left, columns, C))
        _, grad_scores = _probabilities(scores, grad_probs, n, n_left, j, j_left, lse + row, delta + row)
        grad_query = product(grad_scores.to(key.dtype), key, grad_query, PRECISION)

    store_tile(part_query + ((batch * chunks + chunk) * num_rows + j0) * C, grad_query, j, j_left, columns, C)
