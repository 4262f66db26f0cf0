"""``refine`` in Triton: every pixel is updated by the dictionary in one pass, forward and backward.

With x the pixels, y = x + pe, and key, value (J = heads x entries rows) from the dictionary::

    z = key y^T + key_bias    A = softmax of z within each head    u = x + A^T value + out_bias    x' = LayerNorm(u)

Written dictionary-major: pixels are the columns of z and of u, heads are groups of rows of z. Backward recomputes A,
in two steps that meet in the gradient du of u, which is kept in the memory of grad_pixels::

    1. LayerNorm undone: du, and gradients of out_bias, norm_weight, norm_bias
    2. grad_value = A du    dz = A (value du^T - its mean under A)    grad_key = dz y    grad_key_bias = sum_n dz
       grad_pixels = du + dz^T key    grad_pe = dz^T key

Nothing of size N x J is stored. Sums over the pixels go to per-chunk partial results that are added up in a fixed
order, without atomics: results repeat bit for bit. Softmax, norm and sums are float32; products take their factors
in the pixels' dtype.

Several dictionaries may meet the same pixels: key, key_bias and value of batch G * B, where dictionary g * B + b
belongs to image b, give refined pixels of batch G * B. The programs that share a tile of pixels are neighbours, so that
it is read from memory once; the gradients of the shared pixels are written for every dictionary and then added up.

Shapes: B, G, N and the entries of a head are free, C is a multiple of 16 from 16 to 1024 (``configs.why_not``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import configs
from ._launch import DTYPES, on_device, shared_encoding, sum_partials, tf32_allowed
from ._refine_backward import refine_grad_total
from ._refine_backward_rows import refine_grad_pixels, refine_grad_rows
from ._refine_forward import refine_chunk


class Inputs(NamedTuple):
    """The tensor arguments of refine, in order."""

    pixels: Tensor
    pixel_pe: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    out_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor

    @property
    def dictionaries(self) -> int:
        """G, dictionaries an image."""
        return self.key.shape[0] // self.pixels.shape[0]


class Gradients(NamedTuple):
    """Gradients of Inputs; pixel_pe is None unless wanted."""

    pixels: Tensor
    pixel_pe: Tensor | None
    key: Tensor
    key_bias: Tensor
    value: Tensor
    out_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


def prepared(operator: str, inputs: Inputs) -> Inputs:
    """The inputs made contiguous, vectors in float32.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    x, pe, key, key_bias, value, *vectors = inputs
    if x.dtype not in DTYPES or any(t.dtype != x.dtype for t in (pe, key, value)):
        raise TypeError(
            f"{operator}: pixels, pixel_pe, key and value must share one dtype of float32, bfloat16, float16; "
            f"got {x.dtype}, {pe.dtype}, {key.dtype}, {value.dtype}"
        )
    problem = configs.why_not(x.shape[-1])
    if problem:
        raise ValueError(f"{operator}: {problem}")
    if key.shape[0] % x.shape[0]:
        raise ValueError(f"{operator}: key must be [G * {x.shape[0]}, J, C], got {tuple(key.shape)}")
    return Inputs(
        x.contiguous(), pe, key.contiguous(), key_bias.float().contiguous(), value.contiguous(),
        *(v.float().contiguous() for v in vectors),
    )  # fmt: skip


def options(kernel: str, inputs: Inputs, num_heads: int) -> dict[str, Any] | None:
    """Compile-time arguments and launch options of one kernel; None where the architecture's table has no tile."""
    channels, entries = inputs.pixels.shape[-1], inputs.key.shape[1] // num_heads
    tf32 = inputs.pixels.dtype == torch.float32 and tf32_allowed()
    table = configs.architecture(inputs.pixels.device)
    tile = table.refine_tile(kernel, configs.kind(inputs.pixels.dtype, channels, tf32), entries)
    if tile is None:
        return None
    return {
        "C": channels,
        **configs.refine_blocks(tile, channels, num_heads, entries),
        "PRECISION": "tf32" if tf32 else "ieee",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }


def required(kernel: str, inputs: Inputs, num_heads: int) -> dict[str, Any]:
    """The options of a kernel that every table has."""
    found = options(kernel, inputs, num_heads)
    assert found is not None, kernel
    return found


def in_one_block(blocks: dict[str, Any], num_heads: int) -> bool:
    """Whether one block holds all rows of key and value."""
    return num_heads * int(blocks["PADDED"]) <= int(blocks["BLOCK_J"])


def split(inputs: Inputs, blocks: dict[str, Any], groups: int) -> tuple[int, int]:
    """(chunks of the pixels, tiles per chunk) for a kernel with ``groups`` programs per chunk."""
    programs = configs.architecture(inputs.pixels.device).programs
    return configs.split(inputs.pixels.shape[1], blocks["BLOCK_N"], groups, programs)


def refine_forward(inputs: Inputs, num_heads: int, eps: float) -> Tensor:
    """LayerNorm(x + softmax within heads(key . (x + pe) + key_bias) value + out_bias).

    Args:
        inputs: pixels [B, N, C], pixel_pe [N, C] or [B, N, C], key and value [B, J, C], all in one dtype of float32,
            bfloat16, float16; key_bias [B, J], out_bias, norm_weight, norm_bias [C]. Key, key_bias and value may have
            batch G * B.
        num_heads: rows of key are head-major.
        eps: added to the variance.

    Returns:
        [G * B, N, C] in the dtype of pixels.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("refine", inputs)
    x, _, key, key_bias, value, *vectors = inputs
    pe, pe_shared = shared_encoding(inputs.pixel_pe)
    (images, num_pixels, channels), count = x.shape, key.shape[0]
    blocks = required("refine", inputs, num_heads)
    chunks, tiles_per_chunk = split(inputs, blocks, count)
    refined = x.new_empty(count, num_pixels, channels)
    with on_device(x.device):
        refine_chunk[(count * chunks,)](
            x, pe, key, key_bias, value, *vectors, None, refined, None, None, None,
            images, inputs.dictionaries, num_pixels, num_heads, key.shape[1] // num_heads, 0, chunks, tiles_per_chunk,
            eps,
            PE_SHARED=pe_shared, ATTEND=False, ONE_BLOCK=in_one_block(blocks, num_heads), BLOCK_Q=16, **blocks,
        )  # fmt: skip
    return refined


class Attended(NamedTuple):
    """What the gradient through attend needs; delta = grad_context . context - grad_lse."""

    query: Tensor
    lse: Tensor
    grad_context: Tensor
    delta: Tensor


def refine_backward(inputs: Inputs, grad_refined: Tensor, num_heads: int, eps: float, need_pe_grad: bool) -> Gradients:
    """Gradients of ``refine_forward`` for ``grad_refined``, [G * B, N, C] in the dtype of pixels.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("refine", inputs)
    blocks = required("refine_grad_total", inputs, num_heads)
    grad_pe = encoding_gradient(inputs) if need_pe_grad else None
    grad_total, vectors, _ = total_gradient(inputs, grad_refined, None, None, num_heads, eps, blocks)
    return rows_gradient(inputs, grad_total, grad_pe, vectors, num_heads, add_pe=False)


def encoding_gradient(inputs: Inputs) -> Tensor:
    """Memory for the encoding's gradient of every dictionary: float32 where it is summed over them."""
    x, count = inputs.pixels, inputs.key.shape[0]
    summed = encoding_sums(inputs) > 1
    return torch.empty(count, *x.shape[1:], dtype=torch.float32 if summed else x.dtype, device=x.device)


def encoding_sums(inputs: Inputs) -> int:
    """How many dictionaries' gradients make up that of an encoding."""
    return inputs.key.shape[0] if inputs.pixel_pe.dim() == 2 else inputs.dictionaries


def total_gradient(
    inputs: Inputs,
    grad_refined: Tensor,
    grad_pe: Tensor | None,
    attended: Attended | None,
    num_heads: int,
    eps: float,
    blocks: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Step 1, with attend's gradient joined to that of x' where ``attended``.

    Returns:
        du [G * B, N, C] in the dtype of pixels; gradients of out_bias, norm_weight and norm_bias [3, C], float32; that
        of the query or None. Attend's part of the encoding's gradient is written to ``grad_pe``.
    """
    x, _, key, key_bias, value, *vectors = inputs
    pe, pe_shared = shared_encoding(inputs.pixel_pe)
    (images, num_pixels, channels), count = x.shape, key.shape[0]
    queries = 0 if attended is None else attended.query.shape[1]
    chunks, tiles_per_chunk = split(inputs, blocks, count)
    scratch: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    part_vectors = torch.empty(count, chunks, 3, channels, **scratch)
    part_query = None if attended is None else torch.empty(count, chunks, queries, channels, **scratch)
    query, lse, grad_context, delta = (None,) * 4 if attended is None else attended
    grad_total = x.new_empty(count, num_pixels, channels)
    grad_query = None
    with on_device(x.device):
        refine_grad_total[(count * chunks,)](
            x, pe, key, key_bias, value, *vectors, query, grad_context, lse, delta, grad_refined.contiguous(),
            grad_total, grad_pe, part_vectors, part_query,
            images, inputs.dictionaries, num_pixels, num_heads, key.shape[1] // num_heads, queries,
            chunks, tiles_per_chunk, eps,
            PE_SHARED=pe_shared, NEED_PE=grad_pe is not None, ATTEND=attended is not None,
            ONE_BLOCK=in_one_block(blocks, num_heads), BLOCK_Q=max(16, configs.power_of_two(queries)), **blocks,
        )  # fmt: skip
        grad_vectors = sum_partials(part_vectors, torch.float32, 1, count * chunks)
        if attended is not None and part_query is not None:
            grad_query = sum_partials(part_query, x.dtype, count, chunks).view(attended.query.shape)
    return grad_total, grad_vectors.view(3, channels), grad_query


def rows_gradient(
    inputs: Inputs, grad_total: Tensor, grad_pe: Tensor | None, vectors: Tensor, num_heads: int, add_pe: bool
) -> Gradients:
    """Step 2: from du (its memory is reused for grad_pixels) to all gradients; ``add_pe`` adds to grad_pe."""
    x, _, key, key_bias, value, *_ = inputs
    pe, pe_shared = shared_encoding(inputs.pixel_pe)
    (images, num_pixels, channels), (count, rows, _) = x.shape, key.shape
    entries = rows // num_heads
    blocks = required("refine_grad_rows", inputs, num_heads)
    with_pixels = in_one_block(blocks, num_heads)
    row_blocks = triton.cdiv(num_heads * blocks["PADDED"], blocks["BLOCK_J"])
    chunks, tiles_per_chunk = split(inputs, blocks, count * row_blocks)
    scratch: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    part_key = torch.empty(count, chunks, rows, channels, **scratch)
    part_value = torch.empty(count, chunks, rows, channels, **scratch)
    part_bias = torch.empty(count, chunks, rows, **scratch)
    flags = {"PE_SHARED": pe_shared, "NEED_PE": grad_pe is not None, "ADD_PE": add_pe}
    with on_device(x.device):
        refine_grad_rows[(count * row_blocks * chunks,)](
            x, pe, key, key_bias, value, grad_total, grad_pe, part_key, part_value, part_bias,
            images, inputs.dictionaries, num_pixels, num_heads, entries, chunks, tiles_per_chunk,
            WITH_PIXELS=with_pixels, **flags, **blocks,
        )  # fmt: skip
        if not with_pixels:
            blocks = required("refine_grad_pixels", inputs, num_heads)
            refine_grad_pixels[(count * triton.cdiv(num_pixels, blocks["BLOCK_N"]),)](
                x, pe, key, key_bias, value, grad_total, grad_pe,
                images, inputs.dictionaries, num_pixels, num_heads, entries, **flags, **blocks,
            )  # fmt: skip
        grad_key = sum_partials(part_key, key.dtype, count, chunks).view(key.shape)
        grad_value = sum_partials(part_value, key.dtype, count, chunks).view(key.shape)
        grad_bias = sum_partials(part_bias, torch.float32, count, chunks).view(count, rows)
        if inputs.dictionaries > 1:
            grad_total = sum_partials(grad_total, x.dtype, 1, inputs.dictionaries).view(x.shape)
        if grad_pe is not None and encoding_sums(inputs) > 1:
            grad_pe = sum_partials(grad_pe, x.dtype, 1, encoding_sums(inputs))
    if grad_pe is not None:
        grad_pe = grad_pe.view(inputs.pixel_pe.shape)
    return Gradients(grad_total, grad_pe, grad_key, grad_bias, grad_value, *vectors.unbind())
