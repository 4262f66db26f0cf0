"""What the kernels of ``dictionary_step`` share: rows of a head-major tensor, projections of tokens, and their folding.

Tokens are rows r = image * K + entry of [B, K, C]. The inner width of the attention is walked in chunks of CHUNK
columns that belong to one head. Everything is float32, products included: the dictionary is tiny.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import product

CHUNK = tl.constexpr(16)
PRECISION = tl.constexpr("ieee")


@triton.jit
def load_rows(base, rows, row_mask, columns, column_mask, ROW: tl.constexpr, COLUMN: tl.constexpr):
    """Elements at rows * ROW + columns * COLUMN in float32, zero where masked."""
    at = base + rows[:, None] * ROW + columns[None, :] * COLUMN
    return tl.load(at, mask=row_mask[:, None] & column_mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_rows(base, value, rows, row_mask, columns, column_mask, ROW: tl.constexpr, COLUMN: tl.constexpr):
    at = base + rows[:, None] * ROW + columns[None, :] * COLUMN
    tl.store(at, value, mask=row_mask[:, None] & column_mask[None, :])


@triton.jit
def head_rows(rows, head, heads, entries):
    """Where the tokens' rows of one head lie in [B, heads * entries, ...]."""
    return (rows // entries * heads + head) * entries + rows % entries


@triton.jit
def times_weight(
    tokens, added, weight, rows, valid, inner, inner_valid,
    C: tl.constexpr, ADD: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(tokens (+ added)) weight^T for one chunk of the inner width: [BLOCK_R, CHUNK].

    Weight element (i, c) lies at i * ROW + c * COLUMN.
    """
    total = tl.zeros([BLOCK_R, CHUNK], dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        columns = c0 + tl.arange(0, BLOCK_C)
        token = load_rows(tokens, rows, valid, columns, columns < C, C, 1)
        if ADD:
            token += load_rows(added, rows, valid, columns, columns < C, C, 1)
        w = load_rows(weight, inner, inner_valid, columns, columns < C, ROW, COLUMN)
        total = product(token, tl.trans(w), total, PRECISION)
    return total
