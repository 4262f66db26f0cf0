"""Device code of ``dictionary_step``, backward: rows unfolded, then the dictionary, then the weights."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._step_tiles import CHUNK, PRECISION, head_rows, load_rows, store_rows, times_weight
from ._tiles import product


@triton.jit
def _unfold(
    tokens, position, weight, bias, folding, folding_bias, grad, grad_bias, projected, grad_projected,
    rows, valid, head, heads, entries, scale,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr, WITH_BIAS: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The projected rows of one head once more, and their gradient before the scale."""
    at = head_rows(rows, head, heads, entries)
    for i0 in range(0, WIDTH, CHUNK):
        i = i0 + tl.arange(0, CHUNK)
        inner = head * WIDTH + i
        chunk = times_weight(
            tokens, position, weight, rows, valid, inner, i < WIDTH, C, ADD, C, 1, BLOCK_R, BLOCK_C
        )  # fmt: skip
        chunk = (chunk + tl.load(bias + inner, mask=i < WIDTH, other=0.0)[None, :]) * scale
        store_rows(projected, chunk, rows, valid, inner, i < WIDTH, INNER, 1)
        back = times_weight(
            grad, grad, folding, at, valid, inner, i < WIDTH, C, False, ROW, COLUMN, BLOCK_R, BLOCK_C
        )  # fmt: skip
        if WITH_BIAS:
            of_bias = tl.load(grad_bias + at, mask=valid, other=0.0)
            back += of_bias[:, None] * tl.load(folding_bias + inner, mask=i < WIDTH, other=0.0)[None, :]
        store_rows(grad_projected, back * scale, rows, valid, inner, i < WIDTH, INNER, 1)


@triton.jit(do_not_specialize=["num_rows", "entries", "heads"])
def step_grad_rows(
    tokens, position, look_query_weight, look_query_bias, look_key_weight,
    query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, out_weight,
    grad_query, grad_key, grad_key_bias, grad_value, projected, grad_projected, num_rows, entries, heads, scale,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr, LOOK: tl.constexpr, ENTRIES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Projected rows and their gradients, [3, R, INNER] each: those of query, key and value."""
    PARTS: tl.constexpr = (1 if LOOK else 0) + (2 if ENTRIES else 0)
    program = tl.program_id(0)
    part = program % PARTS + (0 if LOOK else 1)
    head = program // PARTS % heads
    rows = (program // (PARTS * heads)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < num_rows
    slot = part.to(tl.int64) * num_rows * INNER
    projected += slot
    grad_projected += slot
    if LOOK and part == 0:
        _unfold(
            tokens, position, look_query_weight, look_query_bias, look_key_weight, look_query_bias,
            grad_query, grad_key_bias, projected, grad_projected, rows, valid, head, heads, entries, scale,
            C, INNER, WIDTH, True, False, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    if ENTRIES and part == 1:
        _unfold(
            tokens, position, key_weight, key_bias, query_weight, query_bias,
            grad_key, grad_key_bias, projected, grad_projected, rows, valid, head, heads, entries, scale,
            C, INNER, WIDTH, True, True, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    if ENTRIES and part == 2:
        _unfold(
            tokens, position, value_weight, value_bias, out_weight, value_bias,
            grad_value, grad_key_bias, projected, grad_projected, rows, valid, head, heads, entries, 1.0,
            C, INNER, WIDTH, False, False, 1, INNER, BLOCK_R, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _through_weight(
    total, grad, weight, rows, valid, C: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """total + grad [R, INNER] weight [INNER, C]."""
    columns = tl.arange(0, WIDE)
    for i0 in range(0, INNER, CHUNK):
        i = i0 + tl.arange(0, CHUNK)
        g = load_rows(grad, rows, valid, i, i < INNER, INNER, 1)
        w = load_rows(weight, i, i < INNER, columns, columns < C, C, 1)
        total = product(g, w, total, PRECISION)
    return total


@triton.jit(do_not_specialize=["num_rows"])
def step_grad_dictionary(
    grad_projected, look_query_weight, key_weight, entry_value_weight, grad_dictionary, normal, inverse_sigma,
    norm_weight, to_dictionary, to_position, part_vectors, num_rows,
    C: tl.constexpr, INNER: tl.constexpr,
    LOOK: tl.constexpr, ENTRIES: tl.constexpr, UPDATE: tl.constexpr, BLOCK_R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of tokens: gradients of position, dictionary and, with UPDATE, its part of those of the vectors."""
    block = tl.program_id(0).to(tl.int64)
    rows = block * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < num_rows
    columns = tl.arange(0, WIDE)
    inside = columns < C
    slot = tl.cast(num_rows, tl.int64) * INNER
    total = tl.zeros([BLOCK_R, WIDE], dtype=tl.float32)
    if LOOK:
        total = _through_weight(total, grad_projected, look_query_weight, rows, valid, C, INNER, WIDE)
    if ENTRIES:
        total = _through_weight(total, grad_projected + slot, key_weight, rows, valid, C, INNER, WIDE)
    store_rows(to_position, total, rows, valid, columns, inside, C, 1)
    if ENTRIES:
        total = _through_weight(total, grad_projected + 2 * slot, entry_value_weight, rows, valid, C, INNER, WIDE)
    if UPDATE:
        total += load_rows(grad_dictionary, rows, valid, columns, inside, C, 1)
        hat = load_rows(normal, rows, valid, columns, inside, C, 1)
        part_vectors += block * 3 * C
        tl.store(part_vectors + columns, tl.sum(total * hat, 0), mask=inside)
        tl.store(part_vectors + C + columns, tl.sum(total, 0), mask=inside)
        scaled = total * tl.load(norm_weight + columns, mask=inside, other=0.0)[None, :]
        mean = tl.sum(scaled, 1) / C
        tilt = tl.sum(scaled * hat, 1) / C
        scale = tl.load(inverse_sigma + rows, mask=valid, other=0.0)
        total = tl.where(inside[None, :], (scaled - mean[:, None] - hat * tilt[:, None]) * scale[:, None], 0.0)
        tl.store(part_vectors + 2 * C + columns, tl.sum(total, 0), mask=inside)
    store_rows(to_dictionary, total, rows, valid, columns, inside, C, 1)


@triton.jit(do_not_specialize=["num_rows", "entries", "heads"])
def step_grad_context(
    to_dictionary, out_weight, value_weight, to_mixed, to_context, num_rows, entries, heads,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of V and of the context for one block of tokens and one head."""
    program = tl.program_id(0)
    head = program % heads
    rows = (program // heads).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < num_rows
    columns = tl.arange(0, WIDE)
    looked = tl.zeros([BLOCK_R, WIDE], dtype=tl.float32)
    for i0 in range(0, WIDTH, CHUNK):
        i = i0 + tl.arange(0, CHUNK)
        inner = head * WIDTH + i
        chunk = times_weight(
            to_dictionary, to_dictionary, out_weight, rows, valid, inner, i < WIDTH,
            C, False, 1, INNER, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        store_rows(to_mixed, chunk, rows, valid, inner, i < WIDTH, INNER, 1)
        w = load_rows(value_weight, inner, i < WIDTH, columns, columns < C, C, 1)
        looked = product(chunk, w, looked, PRECISION)
    store_rows(to_context, looked, head_rows(rows, head, heads, entries), valid, columns, columns < C, C, 1)


@triton.jit
def _outer(
    narrow, wide, position, out, out_bias, coefficient, head, i, columns, num_rows, entries, heads, first,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr, BY_HEAD: tl.constexpr, ADD: tl.constexpr,
    BIAS: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = narrow^T wide for CHUNK x BLOCK_C elements; element (i, c) goes to i * ROW + c * COLUMN.

    narrow [R, INNER]; wide [R, C], head-major where BY_HEAD, plus position where ADD. BIAS: 1 also sums narrow over the
    rows, 2 weighted by ``coefficient`` (head-major).
    """
    inner = head * WIDTH + i
    total = tl.zeros([CHUNK, BLOCK_C], dtype=tl.float32)
    sums = tl.zeros([CHUNK], dtype=tl.float32)
    for r0 in range(0, num_rows, BLOCK_R):
        rows = tl.cast(r0, tl.int64) + tl.arange(0, BLOCK_R)
        valid = rows < num_rows
        at = head_rows(rows, head, heads, entries) if BY_HEAD else rows
        a = load_rows(narrow, rows, valid, inner, i < WIDTH, INNER, 1)
        b = load_rows(wide, at, valid, columns, columns < C, C, 1)
        if ADD:
            b += load_rows(position, rows, valid, columns, columns < C, C, 1)
        total = product(tl.trans(a), b, total, PRECISION)
        if BIAS == 2:
            a *= tl.load(coefficient + at, mask=valid, other=0.0)[:, None]
        sums += tl.sum(a, 0)
    store_rows(out, total, inner, i < WIDTH, columns, columns < C, ROW, COLUMN)
    if BIAS > 0 and first:
        tl.store(out_bias + inner, sums, mask=i < WIDTH)


@triton.jit(do_not_specialize=["num_rows", "entries", "heads"])
def step_grad_weights(
    tokens, position, context, mixed, projected, grad_projected, to_mixed, to_dictionary,
    grad_query, grad_key, grad_key_bias, grad_value,
    to_value_weight, to_value_bias, to_out_weight, to_query_weight, to_query_bias, to_key_weight, to_key_bias,
    to_entry_weight, to_entry_bias, to_entry_out, to_look_weight, to_look_bias, to_look_key, num_rows, entries, heads,
    C: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr,
    LOOK: tl.constexpr, ENTRIES: tl.constexpr, UPDATE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """CHUNK x BLOCK_C elements of the two weights of one part: update (0), look (1), key (2) or value (3)."""
    CHUNKS: tl.constexpr = (WIDTH + CHUNK - 1) // CHUNK
    SLICES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    first = program % SLICES == 0
    columns = program % SLICES * BLOCK_C + tl.arange(0, BLOCK_C)
    i = program // SLICES % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    head = program // (SLICES * CHUNKS) % heads
    part = program // (SLICES * CHUNKS * heads)
    slot = tl.cast(num_rows, tl.int64) * INNER
    if UPDATE and part == 0:
        _outer(
            to_mixed, context, position, to_value_weight, to_value_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, True, False, 1, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        _outer(
            mixed, to_dictionary, position, to_out_weight, to_value_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, False, False, 0, 1, INNER, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    if LOOK and part == 1:
        _outer(
            grad_projected, tokens, position, to_look_weight, to_look_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, False, True, 1, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        _outer(
            projected, grad_query, position, to_look_key, to_look_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, True, False, 0, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    if ENTRIES and part == 2:
        _outer(
            grad_projected + slot, tokens, position, to_key_weight, to_key_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, False, True, 1, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        _outer(
            projected + slot, grad_key, position, to_query_weight, to_query_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, True, False, 2, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    if ENTRIES and part == 3:
        _outer(
            grad_projected + 2 * slot, tokens, position, to_entry_weight, to_entry_bias, grad_key_bias, head, i,
            columns, num_rows, entries, heads, first, C, INNER, WIDTH, False, False, 1, C, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        _outer(
            projected + 2 * slot, grad_value, position, to_entry_out, to_entry_bias, grad_key_bias, head, i, columns,
            num_rows, entries, heads, first, C, INNER, WIDTH, True, False, 0, 1, INNER, BLOCK_R, BLOCK_C,
        )  # fmt: skip
