"""``attend`` in Triton: the dictionary reads the pixels in one pass, forward and backward.

With x the pixels, pe their positional encoding and Q the query (J rows: head-major dictionary entries)::

    S = Q (x + pe)^T        P = softmax of S over the N pixels        context = P x        lse = log sum_n exp S

Forward: every program keeps a running maximum, sum and context of one block of query rows over one chunk of the pixels
(flash decoding, with the pixels as their own values, so a tile of x is read once for both products); a second kernel
merges the chunks. Backward recomputes S from the saved lse; no J x N tensor is ever stored. With G the gradient of the
context and delta = G . context - grad_lse::

    dS = P (G x^T - delta)    grad_query = dS (x + pe)    grad_pixels = dS^T Q + P^T G    grad_pe = dS^T Q

The scores are written dictionary-major (pixels are the columns of S), which keeps the running context in few registers.
Chunks depend on shapes and the architecture only and are merged in a fixed order, without atomics: results repeat bit
for bit. All sums and the softmax are float32; float32 products are exact unless torch allows TF32.

Shapes: B, N, J >= 1 are free; C is a multiple of 16 from 16 to 1024. Addresses are 64-bit. Inputs are made contiguous:
a tile of pixels is then one contiguous block read in 16-byte words, which no strided layout of the model ever is.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import configs
from ._attend_backward import attend_grad_pixels, attend_grad_query
from ._attend_forward import attend_chunk
from ._launch import DTYPES, merge_context, on_device, shared_encoding, sum_partials, tf32_allowed


def _check(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> None:
    (batch, num_pixels, channels), rows = pixels.shape, query.shape[1]
    if pixels.dtype not in DTYPES or pixel_pe.dtype != pixels.dtype or query.dtype != pixels.dtype:
        raise TypeError(
            "attend: pixels, pixel_pe and query must share one dtype of float32, bfloat16, float16; "
            f"got {pixels.dtype}, {pixel_pe.dtype}, {query.dtype}"
        )
    problem = configs.why_not(channels)
    if problem:
        raise ValueError(f"attend: {problem}")
    if min(batch, num_pixels, rows) < 1:
        raise ValueError(f"attend: empty input: pixels {tuple(pixels.shape)}, query {tuple(query.shape)}")
    pe_shapes = [(num_pixels, channels), (batch, num_pixels, channels)]
    if query.shape != (batch, rows, channels) or tuple(pixel_pe.shape) not in pe_shapes:
        raise ValueError(
            f"attend: shapes do not match: pixels {tuple(pixels.shape)}, pixel_pe {tuple(pixel_pe.shape)}, "
            f"query {tuple(query.shape)}"
        )


def _options(name: str, pixels: Tensor, rows: int) -> tuple[dict[str, Any], int]:
    """Compile-time arguments and launch options of one kernel, and how many programs fill the device."""
    channels = pixels.shape[-1]
    tf32 = pixels.dtype == torch.float32 and tf32_allowed()
    table = configs.architecture(pixels.device)
    tile = table.tiles[name, configs.kind(pixels.dtype, channels, tf32)]
    options: dict[str, Any] = {
        "C": channels,
        **configs.block_sizes(tile, channels, rows),
        "PRECISION": "tf32" if tf32 else "ieee",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }
    return options, table.programs


def _groups(batch: int, rows: int, options: dict[str, Any]) -> int:
    """Programs per chunk of pixels: images x blocks of rows x slices of channels."""
    return batch * triton.cdiv(rows, options["BLOCK_J"]) * triton.cdiv(options["C"], options["BLOCK_V"])


def attend_forward(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the pixels of query . (pixels + pixel_pe), times the pixels.

    Args:
        pixels: [B, N, C], float32, bfloat16 or float16.
        pixel_pe: [N, C] or [B, N, C], same dtype.
        query: [B, J, C], same dtype, already scaled.

    Returns:
        context [B, J, C] and log-sum-exp [B, J] (natural logarithm), float32.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    _check(pixels, pixel_pe, query)
    pixels, query = pixels.contiguous(), query.contiguous()
    pe, pe_shared = shared_encoding(pixel_pe)
    (batch, num_pixels, channels), rows = pixels.shape, query.shape[1]
    options, programs = _options("forward", pixels, rows)
    groups = _groups(batch, rows, options)
    chunks, tiles_per_chunk = configs.split(num_pixels, options["BLOCK_N"], groups, programs)

    scratch: dict[str, Any] = {"dtype": torch.float32, "device": pixels.device}
    part_context = torch.empty(batch, chunks, rows, channels, **scratch)
    part_max = torch.empty(batch, chunks, rows, **scratch)
    part_sum = torch.empty(batch, chunks, rows, **scratch)
    with on_device(pixels.device):
        attend_chunk[(groups * chunks,)](
            pixels, pe, query, part_context, part_max, part_sum, num_pixels, rows, chunks, tiles_per_chunk,
            PE_SHARED=pe_shared, **options,
        )  # fmt: skip
        context, lse = merge_context(part_context, part_max, part_sum)
    return context, lse


def attend_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    context: Tensor,
    lse: Tensor,
    grad_context: Tensor,
    grad_lse: Tensor,
    need_pe_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of ``attend_forward``.

    Args:
        pixels, pixel_pe, query: what the forward pass was given.
        context, lse: what it returned.
        grad_context, grad_lse: gradients of those, [B, J, C] and [B, J]; rounded to the inputs' dtype for the products.
        need_pe_grad: whether the encoding's gradient is wanted; a shared one then costs a [B, N, C] float32 scratch.

    Returns:
        Gradients of pixels, pixel_pe (None unless wanted) and query, in their shapes and dtype.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    _check(pixels, pixel_pe, query)
    pixels, query, lse = pixels.contiguous(), query.contiguous(), lse.float().contiguous()
    pe, pe_shared = shared_encoding(pixel_pe)
    (batch, num_pixels, channels), rows = pixels.shape, query.shape[1]
    grad = grad_context.to(pixels.dtype).contiguous()
    # From the rounded gradient, as the kernels use it: the rows of dS then still sum to grad_lse.
    delta = (grad.float() * context).sum(-1) - grad_lse.float()

    by_pixels, _ = _options("grad_pixels", pixels, rows)
    by_query, programs = _options("grad_query", pixels, rows)
    one_block = rows <= by_pixels["BLOCK_J"]
    slices = 1 if one_block else triton.cdiv(channels, by_pixels["BLOCK_V"])
    groups = _groups(batch, rows, by_query)
    chunks, tiles_per_chunk = configs.split(num_pixels, by_query["BLOCK_N"], groups, programs)

    grad_pixels = torch.empty_like(pixels)
    # Only a [N, C] encoding sums over the batch, in float32; all others get their own gradient straight away.
    sum_batch = pixel_pe.dim() == 2 and batch > 1
    grad_pe: Tensor | None = None
    if need_pe_grad:
        grad_pe = torch.empty(pixels.shape, dtype=torch.float32 if sum_batch else pixels.dtype, device=pixels.device)
    part_query = torch.empty(batch, chunks, rows, channels, dtype=torch.float32, device=pixels.device)
    with on_device(pixels.device):
        attend_grad_pixels[(batch * triton.cdiv(num_pixels, by_pixels["BLOCK_N"]) * slices,)](
            pixels, pe, query, grad, lse, delta, grad_pixels, grad_pe, num_pixels, rows,
            PE_SHARED=pe_shared, NEED_PE=need_pe_grad, ONE_BLOCK=one_block, **by_pixels,
        )  # fmt: skip
        attend_grad_query[(groups * chunks,)](
            pixels, pe, query, grad, lse, delta, part_query, num_pixels, rows, chunks, tiles_per_chunk,
            PE_SHARED=pe_shared, **by_query,
        )  # fmt: skip
        grad_query = sum_partials(part_query, query.dtype, batch, chunks)
        if grad_pe is not None and sum_batch:
            grad_pe = sum_partials(grad_pe, pixels.dtype, 1, batch)
    if grad_pe is not None:
        grad_pe = grad_pe.view(pixel_pe.shape)
    return grad_pixels, grad_pe, grad_query.view(query.shape)
