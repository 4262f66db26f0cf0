"""Device code of ``dictionary_step``, forward: the next dictionary, then the rows folded from it."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._step_tiles import CHUNK, PRECISION, head_rows, load_rows, store_rows, times_weight
from ._tiles import product


@triton.jit(do_not_specialize=["num_rows", "entries", "heads"])
def step_update(
    dictionary, context, value_weight, value_bias, out_weight, out_bias, norm_weight, norm_bias,
    updated, mixed, normal, inverse_sigma, num_rows, entries, heads, eps,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """D' of one block of rows and, with SAVE, what the backward needs of it: V, the normalised sum and 1 / sigma."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < num_rows
    columns = tl.arange(0, WIDE)
    total = load_rows(dictionary, rows, valid, columns, columns < C, C, 1)
    total += tl.load(out_bias + columns, mask=columns < C, other=0.0)[None, :]
    for head in range(0, heads):
        looked = head_rows(rows, head, heads, entries)
        for i0 in range(0, WIDTH, CHUNK):
            i = i0 + tl.arange(0, CHUNK)
            inner = head * WIDTH + i
            value = times_weight(
                context, context, value_weight, looked, valid, inner, i < WIDTH, C, False, C, 1, BLOCK_R, BLOCK_C
            )
            value += tl.load(value_bias + inner, mask=i < WIDTH, other=0.0)[None, :]
            if SAVE:
                store_rows(mixed, value, rows, valid, inner, i < WIDTH, INNER, 1)
            out = load_rows(out_weight, inner, i < WIDTH, columns, columns < C, 1, INNER)
            total = product(value, out, total, PRECISION)
    mean = tl.sum(total, 1) / C
    centred = tl.where(columns[None, :] < C, total - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    hat = centred * scale[:, None]
    weight = tl.load(norm_weight + columns, mask=columns < C, other=0.0)
    shift = tl.load(norm_bias + columns, mask=columns < C, other=0.0)
    store_rows(updated, hat * weight[None, :] + shift[None, :], rows, valid, columns, columns < C, C, 1)
    if SAVE:
        store_rows(normal, hat, rows, valid, columns, columns < C, C, 1)
        tl.store(inverse_sigma + rows, scale, mask=valid)


@triton.jit
def _fold(
    tokens, position, weight, bias, folding, folding_bias, out, out_bias, rows, valid, head, heads, entries, scale,
    C: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr, WITH_BIAS: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One head's rows of one part: (tokens weight^T + bias) * scale, times the folding weight."""
    columns = tl.arange(0, WIDE)
    total = tl.zeros([BLOCK_R, WIDE], dtype=tl.float32)
    dots = tl.zeros([BLOCK_R], dtype=tl.float32)
    for i0 in range(0, WIDTH, CHUNK):
        i = i0 + tl.arange(0, CHUNK)
        inner = head * WIDTH + i
        chunk = times_weight(
            tokens, position, weight, rows, valid, inner, i < WIDTH, C, ADD, C, 1, BLOCK_R, BLOCK_C
        )  # fmt: skip
        chunk = (chunk + tl.load(bias + inner, mask=i < WIDTH, other=0.0)[None, :]) * scale
        if WITH_BIAS:
            dots += tl.sum(chunk * tl.load(folding_bias + inner, mask=i < WIDTH, other=0.0)[None, :], 1)
        w = load_rows(folding, inner, i < WIDTH, columns, columns < C, ROW, COLUMN)
        total = product(chunk, w, total, PRECISION)
    at = head_rows(rows, head, heads, entries)
    store_rows(out, total.to(out.dtype.element_ty), at, valid, columns, columns < C, C, 1)
    if WITH_BIAS:
        tl.store(out_bias + at, dots, mask=valid)


@triton.jit(do_not_specialize=["num_rows", "entries", "heads"])
def step_rows(
    tokens, position, look_query_weight, look_query_bias, look_key_weight,
    query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, out_weight,
    out_query, out_key, out_key_bias, out_value, num_rows, entries, heads, scale,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr, LOOK: tl.constexpr, ENTRIES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Query, key or value rows of one head for one block of tokens."""
    PARTS: tl.constexpr = (1 if LOOK else 0) + (2 if ENTRIES else 0)
    program = tl.program_id(0)
    part = program % PARTS + (0 if LOOK else 1)
    head = program // PARTS % heads
    rows = (program // (PARTS * heads)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < num_rows
    if LOOK and part == 0:
        _fold(
            tokens, position, look_query_weight, look_query_bias, look_key_weight, look_query_bias,
            out_query, out_key_bias, rows, valid, head, heads, entries, scale,
            C, WIDTH, True, False, C, 1, BLOCK_R, BLOCK_C, WIDE,
        )  # fmt: skip
    if ENTRIES and part == 1:
        _fold(
            tokens, position, key_weight, key_bias, query_weight, query_bias,
            out_key, out_key_bias, rows, valid, head, heads, entries, scale,
            C, WIDTH, True, True, C, 1, BLOCK_R, BLOCK_C, WIDE,
        )  # fmt: skip
    if ENTRIES and part == 2:
        _fold(
            tokens, position, value_weight, value_bias, out_weight, value_bias,
            out_value, out_key_bias, rows, valid, head, heads, entries, 1.0,
            C, WIDTH, False, False, 1, INNER, BLOCK_R, BLOCK_C, WIDE,
        )  # fmt: skip
