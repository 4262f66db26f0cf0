"""What the Triton kernels share: tiles of row-major matrices and the products of a tile of pixels with the query."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def load_tile(base, rows, row_limit, columns, C: tl.constexpr):
    """rows x columns of a row-major matrix of width C, zero outside it; base already points at the tile's first row."""
    mask = (rows[:, None] < row_limit) & (columns[None, :] < C)
    return tl.load(base + rows[:, None] * C + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(base, value, rows, row_limit, columns, C: tl.constexpr):
    mask = (rows[:, None] < row_limit) & (columns[None, :] < C)
    tl.store(base + rows[:, None] * C + columns[None, :], value, mask=mask)


@triton.jit
def positioned(pixels, pe):
    """x + pe rounded once to the pixels' type (the interpreter cannot add bfloat16 directly)."""
    return (pixels.to(tl.float32) + pe.to(tl.float32)).to(pixels.dtype)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """a b + total, accumulated in float32; widened in the interpreter, which multiplies bfloat16 bits as integers."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def tile_products(
    pixels, pe, query, grad, n, n_left, j, j_left,
    C: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    WITH_GRAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Q (x + pe)^T and, with gradients, G x^T of one tile [BLOCK_J, BLOCK_N], summed over slices of the channels."""
    scores = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32)
    grad_probs = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32)
    for c in range(0, C, BLOCK_C):
        columns = c + tl.arange(0, BLOCK_C)
        x = load_tile(pixels, n, n_left, columns, C)
        key = positioned(x, load_tile(pe, n, n_left, columns, C))
        scores = product(load_tile(query, j, j_left, columns, C), tl.trans(key), scores, PRECISION)
        if WITH_GRAD:
            grad_probs = product(load_tile(grad, j, j_left, columns, C), tl.trans(x), grad_probs, PRECISION)
    return scores, grad_probs


@triton.jit(do_not_specialize=["parts", "size"])
def sum_parts(partials, out, parts, size, BLOCK: tl.constexpr):
    """out[group, i] = sum over p of partials[group, p, i], in order of p."""
    blocks = (size + BLOCK - 1) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    group = program // blocks
    i = program % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for p in range(0, parts):
        total += tl.load(partials + (group * parts + p) * size + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(out + group * size + i, total, mask=i < size)
