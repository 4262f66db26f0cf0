"""Device code of ``attend``, forward: running softmax over chunks of the pixels, then the chunks merged."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import LN2, LOG2E, load_tile, positioned, product, store_tile, tile_products


@triton.jit(do_not_specialize=["num_pixels", "num_rows", "chunks", "tiles_per_chunk"])
def attend_chunk(
    pixels, pe, query, part_context, part_max, part_sum, num_pixels, num_rows, chunks, tiles_per_chunk,
    C: tl.constexpr, PE_SHARED: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of query rows over one chunk of pixels: running maximum, sum and (a slice of the) context."""
    SLICES: tl.constexpr = (C + BLOCK_V - 1) // BLOCK_V
    WHOLE: tl.constexpr = (BLOCK_C >= C) and (BLOCK_V == BLOCK_C)
    row_blocks = (num_rows + BLOCK_J - 1) // BLOCK_J
    # Programs that share a tile of pixels are neighbours, so that it is read from memory once and then from L2.
    program = tl.program_id(0)
    slice_id = program % SLICES
    j0 = program // SLICES % row_blocks * BLOCK_J
    chunk = program // (SLICES * row_blocks) % chunks
    batch = (program // (SLICES * row_blocks * chunks)).to(tl.int64)

    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    columns = slice_id * BLOCK_V + tl.arange(0, BLOCK_V)
    pixels += batch * num_pixels * C
    if not PE_SHARED:
        pe += batch * num_pixels * C
    query += (batch * num_rows + j0) * C
    j_left = num_rows - j0
    if WHOLE:
        q = load_tile(query, j, j_left, columns, C)

    running_max = tl.full([BLOCK_J], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_J], dtype=tl.float32)
    context = tl.zeros([BLOCK_J, BLOCK_V], dtype=tl.float32)
    first = chunk * tiles_per_chunk * BLOCK_N
    last = tl.minimum(first + tiles_per_chunk * BLOCK_N, num_pixels)
    for n0 in range(first, last, BLOCK_N):
        start = tl.cast(n0, tl.int64) * C
        n_left = num_pixels - n0
        if WHOLE:
            x = load_tile(pixels + start, n, n_left, columns, C)
            key = positioned(x, load_tile(pe + start, n, n_left, columns, C))
            scores = product(q, tl.trans(key), tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32), PRECISION)
        else:
            scores, _ = tile_products(
                pixels + start, pe + start, query, query, n, n_left, j, j_left,
                C, BLOCK_J, BLOCK_N, BLOCK_C, False, PRECISION,
            )  # fmt: skip
            x = load_tile(pixels + start, n, n_left, columns, C)
        scores = tl.where(n[None, :] < n_left, scores, float("-inf"))
        # Every tile holds at least one pixel, so the new maximum is finite and the first rescale is exp2(-inf) = 0.
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        rescale = tl.exp2((running_max - new_max) * LOG2E)
        # Summed as rounded for the product, so that the context is a true mean and delta of the backward pass agrees.
        probs = tl.exp2((scores - new_max[:, None]) * LOG2E).to(x.dtype)
        running_sum = running_sum * rescale + tl.sum(probs.to(tl.float32), 1)
        context = product(probs, x, context * rescale[:, None], PRECISION)
        running_max = new_max

    part = (batch * chunks + chunk) * num_rows + j0
    store_tile(part_context + part * C, context, j, j_left, columns, C)
    if slice_id == 0:
        tl.store(part_max + part + j, running_max, mask=j < j_left)
        tl.store(part_sum + part + j, running_sum, mask=j < j_left)


@triton.jit(do_not_specialize=["num_rows", "chunks"])
def merge_chunks(
    part_context, part_max, part_sum, context, lse, num_rows, chunks,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """One context row: chunks weighted by exp(their maximum - the common maximum), divided by the common sum."""
    program = tl.program_id(0).to(tl.int64)
    batch = program // num_rows
    first = batch * chunks * num_rows + program % num_rows
    parts = tl.arange(0, BLOCK_PARTS)
    columns = tl.arange(0, BLOCK_C)

    highest = tl.full([BLOCK_PARTS], float("-inf"), dtype=tl.float32)
    for p in range(0, chunks, BLOCK_PARTS):
        at = first + (p + parts).to(tl.int64) * num_rows
        highest = tl.maximum(highest, tl.load(part_max + at, mask=p + parts < chunks, other=float("-inf")))
    maximum = tl.max(highest, 0)

    total = tl.zeros([BLOCK_PARTS], dtype=tl.float32)
    merged = tl.zeros([BLOCK_C], dtype=tl.float32)
    for p in range(0, chunks, BLOCK_PARTS):
        valid = p + parts < chunks
        at = first + (p + parts).to(tl.int64) * num_rows
        weight = tl.exp2((tl.load(part_max + at, mask=valid, other=float("-inf")) - maximum) * LOG2E)
        total += weight * tl.load(part_sum + at, mask=valid, other=0.0)
        rows = tl.load(
            part_context + at[:, None] * C + columns[None, :], mask=valid[:, None] & (columns[None, :] < C), other=0.0
        )
        merged += tl.sum(weight[:, None] * rows, 0)
    denominator = tl.sum(total, 0)
    tl.store(context + program * C + columns, merged / denominator, mask=columns < C)
    tl.store(lse + program, maximum + tl.log2(denominator) * LN2)
