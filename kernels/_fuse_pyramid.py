"""Device code of ``fuse_pyramid``: bilinear upsampling of the coarse products, added in place, and its adjoint."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bilinear_taps(fine, coarse_size, fine_size):
    """Low and high coarse index and the weight of the high one (align_corners=False, clamped to the map)."""
    scale = tl.cast(coarse_size, tl.float32) / tl.cast(fine_size, tl.float32)
    source = tl.maximum(scale * (tl.cast(fine, tl.float32) + 0.5) - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), coarse_size - 1)
    return low, tl.minimum(low + 1, coarse_size - 1), tl.minimum(source - low.to(tl.float32), 1.0)


@triton.jit
def add_level(
    total, product, y, x, mask, columns, batch, level_height, level_width, height, width, C: tl.constexpr
):  # fmt: skip
    """total [BLOCK_N, BLOCK_C] + the four taps of one coarse product [B, h_i w_i, C] at the pixels (y, x)."""
    top, bottom, down = bilinear_taps(y, level_height, height)
    left, right, along = bilinear_taps(x, level_width, width)
    product += batch * level_height * level_width * C
    for vertical in tl.static_range(2):
        row = bottom if vertical else top
        row_weight = down if vertical else 1.0 - down
        for horizontal in tl.static_range(2):
            column = right if horizontal else left
            weight = row_weight * (along if horizontal else 1.0 - along)
            at = (row.to(tl.int64) * level_width + column) * C
            value = tl.load(product + at[:, None] + columns[None, :], mask=mask, other=0.0)
            total += weight[:, None] * value.to(tl.float32)
    return total


@triton.jit(do_not_specialize=["height", "width", "height_1", "width_1", "height_2", "width_2", "height_3", "width_3"])
def pyramid_sum(
    fused, bias, product_1, product_2, product_3,
    height, width, height_1, width_1, height_2, width_2, height_3, width_3,
    C: tl.constexpr, LEVELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of pixels and channels: fused += bias + upsampled products of up to three coarse levels, in place."""
    slices: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    num_pixels = height * width
    tiles = (num_pixels + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    columns = program % slices * BLOCK_C + tl.arange(0, BLOCK_C)
    n = program // slices % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = (program // (slices * tiles)).to(tl.int64)
    mask = (n[:, None] < num_pixels) & (columns[None, :] < C)
    y, x = n // width, n % width
    at = fused + (batch * num_pixels + n.to(tl.int64))[:, None] * C + columns[None, :]
    total = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(bias + columns, mask=columns < C, other=0.0)[None, :]
    if LEVELS > 0:
        total = add_level(total, product_1, y, x, mask, columns, batch, height_1, width_1, height, width, C)
    if LEVELS > 1:
        total = add_level(total, product_2, y, x, mask, columns, batch, height_2, width_2, height, width, C)
    if LEVELS > 2:
        total = add_level(total, product_3, y, x, mask, columns, batch, height_3, width_3, height, width, C)
    tl.store(at, total.to(fused.dtype.element_ty), mask=mask)


@triton.jit
def reached(coarse, coarse_size, fine_size):
    """[begin, end): every fine index that may have the coarse one among its taps; the weights decide."""
    stretch = tl.cast(fine_size, tl.float32) / tl.cast(coarse_size, tl.float32)
    position = tl.cast(coarse, tl.float32)
    # One more on each side, against rounding; and the edges reach as far as the grid does.
    begin = tl.floor((position - 0.5) * stretch - 1.5).to(tl.int32)
    end = tl.ceil((position + 1.5) * stretch + 1.5).to(tl.int32)
    begin = tl.where(coarse == 0, 0, tl.maximum(begin, 0))
    return begin, tl.where(coarse == coarse_size - 1, fine_size, tl.minimum(end, fine_size))


@triton.jit
def tap_weight(fine, coarse, coarse_size, fine_size):
    """What the fine index takes from the coarse one."""
    low, high, weight = bilinear_taps(fine, coarse_size, fine_size)
    return tl.where(low == coarse, 1.0 - weight, 0.0) + tl.where(high == coarse, weight, 0.0)


@triton.jit(do_not_specialize=["height", "width", "level_height", "level_width"])
def pyramid_gather(
    grad, grad_product, height, width, level_height, level_width,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of one row of a coarse product: every pixel sums its fine pixels, in their order."""
    slices: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles = (level_width + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    columns = program % slices * BLOCK_C + tl.arange(0, BLOCK_C)
    x = program // slices % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    row = program // (slices * tiles) % level_height
    batch = (program // (slices * tiles * level_height)).to(tl.int64)
    grad += batch * height * width * C
    first_y, last_y = reached(row, level_height, height)
    first_x, last_x = reached(x, level_width, width)
    steps = tl.max(tl.where(x < level_width, last_x - first_x, 0), 0)
    total = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for fine_y in range(first_y, last_y):
        line = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
        start = tl.cast(fine_y, tl.int64) * width
        for step in range(0, steps):
            fine_x = first_x + step
            inside = (fine_x < last_x) & (x < level_width)
            weight = tl.where(inside, tap_weight(fine_x, x, level_width, width), 0.0)
            mask = inside[:, None] & (columns[None, :] < C)
            value = tl.load(grad + (start + fine_x)[:, None] * C + columns[None, :], mask=mask, other=0.0)
            line += weight[:, None] * value.to(tl.float32)
        total += tap_weight(fine_y, row, level_height, height) * line
    at = (batch * level_height + row) * level_width + x.to(tl.int64)
    mask = (x[:, None] < level_width) & (columns[None, :] < C)
    tl.store(grad_product + at[:, None] * C + columns[None, :], total.to(grad_product.dtype.element_ty), mask=mask)
