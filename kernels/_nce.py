"""Device code of ``nce``: scores of a tile, what they sum to along either axis, and their gradients."""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import LN2, LOG2E, load_tile, product, store_tile

SHORTEST = tl.constexpr(1e-12)  # what a shorter vector is divided by
LOWEST = tl.constexpr(-1.0e38)  # below every score, and finite: lowest - lowest is not NaN


@triton.jit
def _labels(target, n, n_left, ignore_index, classes):
    """Class of every pixel (0 where there is none) and whether it has one."""
    y = tl.load(target + n, mask=n < n_left, other=-1)
    used = (n < n_left) & (y != ignore_index) & (y >= 0) & (y < classes)
    return tl.where(used, y, 0), used


@triton.jit
def _scores(
    pixels, dictionary, n, n_left, j, j_left,
    C: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Entries x pixels over the pixels' lengths [BLOCK_J, BLOCK_N], and one over those lengths.

    Products are of float32 factors: 16-bit pixels are exact in TF32, and the entries keep more than their type would.
    """
    scores = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32)
    square = tl.zeros([BLOCK_N], dtype=tl.float32)
    for c in range(0, C, BLOCK_C):
        columns = c + tl.arange(0, BLOCK_C)
        x = load_tile(pixels, n, n_left, columns, C).to(tl.float32)
        square += tl.sum(x * x, 1)
        scores = product(load_tile(dictionary, j, j_left, columns, C), tl.trans(x), scores, PRECISION)
    inverse = 1.0 / tl.maximum(tl.sqrt(square), SHORTEST)
    return scores * inverse[None, :], inverse


@triton.jit(do_not_specialize=["num_pixels", "num_entries", "prototypes", "ignore_index"])
def nce_rows(
    pixels, dictionary, target, row_lse, own, num_pixels, num_entries, prototypes, ignore_index,
    C: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of a tile's scores over all entries and over those of the pixel's own class."""
    tiles = (num_pixels + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    n0 = program % tiles * BLOCK_N
    batch = (program // tiles).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    n_left = num_pixels - n0
    first = batch * num_pixels + n0
    label, _used = _labels(target + first, n, n_left, ignore_index, num_entries // prototypes)

    top = tl.full([BLOCK_N], LOWEST, dtype=tl.float32)
    own_top = tl.full([BLOCK_N], LOWEST, dtype=tl.float32)
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    own_total = tl.zeros([BLOCK_N], dtype=tl.float32)
    for j0 in range(0, num_entries, BLOCK_J):
        j_left = num_entries - j0
        scores, _ = _scores(
            pixels + first * C, dictionary + (batch * num_entries + j0) * C, n, n_left, j, j_left,
            C, BLOCK_J, BLOCK_N, BLOCK_C, PRECISION,
        )  # fmt: skip
        inside = j[:, None] < j_left
        member = inside & (((j0 + j) // prototypes)[:, None] == label[None, :])
        new = tl.maximum(top, tl.max(tl.where(inside, scores, LOWEST), 0))
        weights = tl.where(inside, tl.exp2((scores - new[None, :]) * LOG2E), 0.0)
        total = total * tl.exp2((top - new) * LOG2E) + tl.sum(weights, 0)
        top = new
        new = tl.maximum(own_top, tl.max(tl.where(member, scores, LOWEST), 0))
        # No member in a block leaves new at the lowest score: what is not one must not be raised to a power there.
        weights = tl.where(member, tl.exp2(tl.where(member, scores - new[None, :], 0.0) * LOG2E), 0.0)
        own_total = own_total * tl.exp2((own_top - new) * LOG2E) + tl.sum(weights, 0)
        own_top = new
    tl.store(row_lse + first + n, top + tl.log2(total) * LN2, mask=n < n_left)
    tl.store(own + first + n, own_top + tl.log2(own_total) * LN2, mask=n < n_left)


@triton.jit(do_not_specialize=["num_pixels", "classes", "ignore_index", "chunks", "chunk_pixels"])
def nce_classes(
    target, row_lse, own, part_sums, part_count, num_pixels, classes, ignore_index, chunks, chunk_pixels,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Loss, positive score and count of one block of classes over one chunk; label ``classes`` are the strays."""
    blocks = (classes + BLOCK_K) // BLOCK_K
    program = tl.program_id(0)
    k = program % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    chunk = program // blocks % chunks
    batch = (program // (blocks * chunks)).to(tl.int64)
    first = batch * num_pixels
    n = tl.arange(0, BLOCK_N)
    loss = tl.zeros([BLOCK_K], dtype=tl.float32)
    positive = tl.zeros([BLOCK_K], dtype=tl.float32)
    count = tl.zeros([BLOCK_K], dtype=tl.int32)
    last = tl.minimum((chunk + 1) * chunk_pixels, num_pixels)
    for n0 in range(chunk * chunk_pixels, last, BLOCK_N):
        inside = n0 + n < last
        at = first + n0 + n
        y = tl.load(target + at, mask=inside, other=0)
        whole = tl.load(row_lse + at, mask=inside, other=0.0)
        mine = tl.load(own + at, mask=inside, other=0.0)
        y = tl.where((y < 0) | (y >= classes), tl.where(y == ignore_index, y, classes), y)
        member = (k[:, None] == y[None, :]) & (inside & (y != ignore_index))[None, :]
        scored = member & (k < classes)[:, None]
        loss += tl.sum(tl.where(scored, (whole - mine)[None, :], 0.0), 1)
        positive += tl.sum(tl.where(scored, mine[None, :], 0.0), 1)
        count += tl.sum(member.to(tl.int32), 1)
    part = batch * chunks + chunk
    tl.store(part_sums + part * 2 * classes + k, loss, mask=k < classes)
    tl.store(part_sums + (part * 2 + 1) * classes + k, positive, mask=k < classes)
    tl.store(part_count + part * (classes + 1) + k, count, mask=k <= classes)


@triton.jit(do_not_specialize=["num_pixels", "num_entries", "prototypes", "ignore_index", "chunks", "tiles_per_chunk"])
def nce_columns(
    pixels, dictionary, target, part_top, part_sum,
    num_pixels, num_entries, prototypes, ignore_index, chunks, tiles_per_chunk,
    C: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Running maximum and sum over the labelled pixels of one chunk, for one block of entries."""
    blocks = (num_entries + BLOCK_J - 1) // BLOCK_J
    program = tl.program_id(0)
    j0 = program % blocks * BLOCK_J
    chunk = program // blocks % chunks
    batch = (program // (blocks * chunks)).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    j_left = num_entries - j0
    top = tl.full([BLOCK_J], LOWEST, dtype=tl.float32)
    total = tl.zeros([BLOCK_J], dtype=tl.float32)
    begin = chunk * tiles_per_chunk * BLOCK_N
    for n0 in range(begin, tl.minimum(begin + tiles_per_chunk * BLOCK_N, num_pixels), BLOCK_N):
        first = batch * num_pixels + n0
        n_left = num_pixels - n0
        _label, used = _labels(target + first, n, n_left, ignore_index, num_entries // prototypes)
        scores, _ = _scores(
            pixels + first * C, dictionary + (batch * num_entries + j0) * C, n, n_left, j, j_left,
            C, BLOCK_J, BLOCK_N, BLOCK_C, PRECISION,
        )  # fmt: skip
        new = tl.maximum(top, tl.max(tl.where(used[None, :], scores, LOWEST), 1))
        weights = tl.where(used[None, :], tl.exp2(tl.where(used[None, :], scores - new[:, None], 0.0) * LOG2E), 0.0)
        total = total * tl.exp2((top - new) * LOG2E) + tl.sum(weights, 1)
        top = new
    part = (batch * chunks + chunk) * num_entries + j0
    tl.store(part_top + part + j, top, mask=j < j_left)
    tl.store(part_sum + part + j, total, mask=j < j_left)


@triton.jit
def _score_gradients(
    scores, n, n_left, j, j_left, j0, label, used, row_lse, own, lse, grad_loss, grad_positive, grad_lse, prototypes,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of every score of a tile; row_lse and own point at its pixels, the rest at the image's classes."""
    whole = tl.load(row_lse + n, mask=n < n_left, other=0.0)
    mine = tl.load(own + n, mask=n < n_left, other=0.0)
    k = (j0 + j) // prototypes
    used = used[None, :] & (j < j_left)[:, None]
    from_own = tl.zeros_like(whole)
    grad = tl.zeros_like(scores)
    if ROWS:
        by_label = tl.load(grad_loss + label)
        from_own -= by_label
        grad += by_label[None, :] * tl.exp2(tl.where(used, scores - whole[None, :], 0.0) * LOG2E)
    if COLUMNS:
        from_own += tl.load(grad_positive + label)
        column = tl.load(lse + k, mask=j < j_left, other=0.0)
        by_class = tl.load(grad_lse + k, mask=j < j_left, other=0.0)
        grad += by_class[:, None] * tl.exp2(tl.where(used, scores - column[:, None], 0.0) * LOG2E)
    member = used & (k[:, None] == label[None, :])
    share = tl.exp2(tl.where(member, scores - mine[None, :], 0.0) * LOG2E)
    grad += tl.where(member, from_own[None, :] * share, 0.0)
    return tl.where(used, grad, 0.0)


@triton.jit
def _along_removed(total, along, inverse, x):
    """Gradient of x from that of its unit vector; the length of a too short vector plays no part."""
    slope = tl.where(inverse >= 1.0 / SHORTEST, 0.0, along * inverse)
    return (total - slope[:, None] * x) * inverse[:, None]


@triton.jit(do_not_specialize=["num_pixels", "num_entries", "prototypes", "ignore_index"])
def nce_grad_pixels(
    pixels, dictionary, target, row_lse, own, lse, grad_loss, grad_positive, grad_lse, grad_pixels,
    num_pixels, num_entries, prototypes, ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ONE_BLOCK: tl.constexpr, C: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_pixels of one tile.

    ONE_BLOCK (all entries in one block): the gradient of the scores is formed once and the result leaves slice by
    slice. Otherwise every program owns one slice of channels and runs over the blocks of entries.
    """
    SLICES: tl.constexpr = 1 if ONE_BLOCK else (C + BLOCK_V - 1) // BLOCK_V
    tiles = (num_pixels + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    n0 = program // SLICES % tiles * BLOCK_N
    batch = (program // (SLICES * tiles)).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    n_left = num_pixels - n0
    first = batch * num_pixels + n0
    classes = num_entries // prototypes
    label, used = _labels(target + first, n, n_left, ignore_index, classes)
    dictionary += batch * num_entries * C
    pixels += first * C
    grad_pixels += first * C
    at = batch * classes

    if ONE_BLOCK:
        scores, inverse = _scores(
            pixels, dictionary, n, n_left, j, num_entries, C, BLOCK_J, BLOCK_N, BLOCK_C, PRECISION
        )
        grad = _score_gradients(
            scores, n, n_left, j, num_entries, 0, label, used, row_lse + first, own + first, lse + at, grad_loss + at,
            grad_positive + at, grad_lse + at, prototypes, ROWS, COLUMNS,
        )  # fmt: skip
        along = tl.sum(grad * scores, 0)
        grad_t = tl.trans(grad)
        for v in range(0, C, BLOCK_V):
            columns = v + tl.arange(0, BLOCK_V)
            total = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
            total = product(grad_t, load_tile(dictionary, j, num_entries, columns, C), total, PRECISION)
            x = load_tile(pixels, n, n_left, columns, C).to(tl.float32)
            store_tile(grad_pixels, _along_removed(total, along, inverse, x), n, n_left, columns, C)
    else:
        columns = program % SLICES * BLOCK_V + tl.arange(0, BLOCK_V)
        total = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
        along = tl.zeros([BLOCK_N], dtype=tl.float32)
        inverse = tl.zeros([BLOCK_N], dtype=tl.float32)
        for j0 in range(0, num_entries, BLOCK_J):
            block = dictionary + tl.cast(j0, tl.int64) * C
            j_left = num_entries - j0
            scores, inverse = _scores(pixels, block, n, n_left, j, j_left, C, BLOCK_J, BLOCK_N, BLOCK_C, PRECISION)
            grad = _score_gradients(
                scores, n, n_left, j, j_left, j0, label, used, row_lse + first, own + first, lse + at, grad_loss + at,
                grad_positive + at, grad_lse + at, prototypes, ROWS, COLUMNS,
            )  # fmt: skip
            along += tl.sum(grad * scores, 0)
            total = product(tl.trans(grad), load_tile(block, j, j_left, columns, C), total, PRECISION)
        x = load_tile(pixels, n, n_left, columns, C).to(tl.float32)
        store_tile(grad_pixels, _along_removed(total, along, inverse, x), n, n_left, columns, C)


@triton.jit(do_not_specialize=["num_pixels", "num_entries", "prototypes", "ignore_index", "chunks", "tiles_per_chunk"])
def nce_grad_entries(
    pixels, dictionary, target, row_lse, own, lse, grad_loss, grad_positive, grad_lse, part_entries,
    num_pixels, num_entries, prototypes, ignore_index, chunks, tiles_per_chunk,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of entries over one chunk of pixels, one slice of channels."""
    SLICES: tl.constexpr = (C + BLOCK_V - 1) // BLOCK_V
    blocks = (num_entries + BLOCK_J - 1) // BLOCK_J
    program = tl.program_id(0)
    columns = program % SLICES * BLOCK_V + tl.arange(0, BLOCK_V)
    j0 = program // SLICES % blocks * BLOCK_J
    chunk = program // (SLICES * blocks) % chunks
    batch = (program // (SLICES * blocks * chunks)).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_J)
    j_left = num_entries - j0
    classes = num_entries // prototypes
    at = batch * classes
    total = tl.zeros([BLOCK_J, BLOCK_V], dtype=tl.float32)
    begin = chunk * tiles_per_chunk * BLOCK_N
    for n0 in range(begin, tl.minimum(begin + tiles_per_chunk * BLOCK_N, num_pixels), BLOCK_N):
        first = batch * num_pixels + n0
        n_left = num_pixels - n0
        label, used = _labels(target + first, n, n_left, ignore_index, classes)
        scores, inverse = _scores(
            pixels + first * C, dictionary + (batch * num_entries + j0) * C, n, n_left, j, j_left,
            C, BLOCK_J, BLOCK_N, BLOCK_C, PRECISION,
        )  # fmt: skip
        grad = _score_gradients(
            scores, n, n_left, j, j_left, j0, label, used, row_lse + first, own + first, lse + at, grad_loss + at,
            grad_positive + at, grad_lse + at, prototypes, ROWS, COLUMNS,
        )  # fmt: skip
        x = load_tile(pixels + first * C, n, n_left, columns, C).to(tl.float32)
        total = product(grad * inverse[None, :], x, total, PRECISION)
    part = (batch * chunks + chunk) * num_entries + j0
    store_tile(part_entries + part * C, total, j, j_left, columns, C)
