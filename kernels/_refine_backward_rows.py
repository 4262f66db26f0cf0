"""Device code of ``refine`` and ``refine_attend``, backward, step 2: softmax and products undone."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._refine_tiles import (
    COUNTS,
    entry_weights,
    head_rows,
    head_softmax_backward,
    head_statistics,
    load_bias,
    part_weights,
    place,
)
from ._tiles import load_tile, positioned, product, store_tile


@triton.jit
def _score_gradients(
    k, v, c, y, grad_total, top, inverse_sum, delta,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A and dz [BLOCK_J, BLOCK_N] of one block of rows and one tile; the statistics are those of a divided head."""
    grad_weights = product(v, tl.trans(grad_total), tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32), PRECISION)
    if PADDED > BLOCK_J:
        weights = part_weights(k, c, y, top, inverse_sum, BLOCK_J, BLOCK_N, PRECISION)
        grad_scores = weights * (grad_weights - delta[None, :])
    else:
        weights = entry_weights(k, c, y, BLOCK_J, BLOCK_N, PADDED, PRECISION)
        grad_scores = head_softmax_backward(weights, grad_weights, BLOCK_J, BLOCK_N, PADDED)
    return weights, grad_scores


@triton.jit
def _add_through_key(
    through, key, value, key_bias, y, grad_total, j0, heads, entries, top, inverse_sum, delta,
    C: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """through [BLOCK_C, BLOCK_N] + key^T dz of one block of rows."""
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
    k = load_tile(key, rows, num_rows, columns, C)
    v = load_tile(value, rows, num_rows, columns, C)
    c = load_bias(key_bias, rows, in_head, num_rows)
    _, grad_scores = _score_gradients(
        k, v, c, y, grad_total, top, inverse_sum, delta, BLOCK_J, BLOCK_N, PADDED, PRECISION
    )
    return product(tl.trans(k), grad_scores.to(y.dtype), through, PRECISION)


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


@triton.jit(do_not_specialize=COUNTS)
def refine_grad_rows(
    pixels, pe, key, key_bias, value, grad_pixels, grad_pe, part_key, part_value, part_bias,
    images, dictionaries, num_pixels, heads, entries, chunks, tiles_per_chunk,
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
    image, chunk, batch = place(program // blocks, dictionaries, images, chunks)
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    num_rows = heads * entries
    pixels += image * num_pixels * C
    if not PE_SHARED:
        pe += image * num_pixels * C
    grad_pixels += batch * num_pixels * C
    if NEED_PE:
        grad_pe += batch * num_pixels * C
    key += batch * num_rows * C
    value += batch * num_rows * C
    key_bias += batch * num_rows
    rows, in_head = head_rows(j0, heads, entries, BLOCK_J, PADDED)
    k = load_tile(key, rows, num_rows, columns, C)
    v = load_tile(value, rows, num_rows, columns, C)
    c = load_bias(key_bias, rows, in_head, num_rows)

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
        top, inverse_sum, delta = c, c, c
        if PADDED > BLOCK_J:
            top, inverse_sum, delta = head_statistics(
                key, value, key_bias, y, grad_total, j0 // PADDED, heads, entries,
                C, True, BLOCK_J, BLOCK_N, BLOCK_C, PADDED, PRECISION,
            )  # fmt: skip
        weights, grad_scores = _score_gradients(
            k, v, c, y, grad_total, top, inverse_sum, delta, BLOCK_J, BLOCK_N, PADDED, PRECISION
        )
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


@triton.jit(do_not_specialize=COUNTS)
def refine_grad_pixels(
    pixels, pe, key, key_bias, value, grad_pixels, grad_pe,
    images, dictionaries, num_pixels, heads, entries,
    C: tl.constexpr, PE_SHARED: tl.constexpr, NEED_PE: tl.constexpr, ADD_PE: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of u in grad_pixels replaced by that of the pixels, for one tile of pixels, over blocks of rows."""
    tiles = (num_pixels + BLOCK_N - 1) // BLOCK_N
    image, tile, batch = place(tl.program_id(0), dictionaries, images, tiles)
    n0 = tile * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    n_left = num_pixels - n0
    num_rows = heads * entries
    start = (batch * num_pixels + n0) * C
    if NEED_PE:
        grad_pe += start
    key += batch * num_rows * C
    value += batch * num_rows * C
    key_bias += batch * num_rows
    pixels += (image * num_pixels + n0) * C
    if PE_SHARED:
        pe += n0.to(tl.int64) * C
    else:
        pe += (image * num_pixels + n0) * C
    y = positioned(load_tile(pixels, n, n_left, columns, C), load_tile(pe, n, n_left, columns, C))
    grad_total = load_tile(grad_pixels + start, n, n_left, columns, C)
    through = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    if PADDED > BLOCK_J:
        for head in range(0, heads):
            top, inverse_sum, delta = head_statistics(
                key, value, key_bias, y, grad_total, head, heads, entries,
                C, True, BLOCK_J, BLOCK_N, BLOCK_C, PADDED, PRECISION,
            )  # fmt: skip
            for j0 in range(head * PADDED, head * PADDED + PADDED, BLOCK_J):
                through = _add_through_key(
                    through, key, value, key_bias, y, grad_total, j0, heads, entries, top, inverse_sum, delta,
                    C, BLOCK_J, BLOCK_N, BLOCK_C, PADDED, PRECISION,
                )  # fmt: skip
    else:
        for j0 in range(0, heads * PADDED, BLOCK_J):
            through = _add_through_key(
                through, key, value, key_bias, y, grad_total, j0, heads, entries, y, y, y,
                C, BLOCK_J, BLOCK_N, BLOCK_C, PADDED, PRECISION,
            )  # fmt: skip
    _store_grad_pixels(grad_pixels + start, grad_pe, grad_total, through, n, n_left, columns, C, NEED_PE, ADD_PE)
