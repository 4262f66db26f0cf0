"""``refine_attend`` in Triton: the pixels are updated and read by the next query in one pass, forward and backward.

The pass of ``refine``, with the running softmax of ``attend`` over x' (rounded to its dtype, as it is stored) while
the tile is on chip. Backward: attend's gradient joins that of x' in step 1 of refine's backward, which recomputes x'
from x. Where the architecture's table has no tile for the fused pass, or the query has more than 64 rows, refine and
attend run one after the other: the same mathematics in more memory traffic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import configs
from ._launch import merge_context, on_device, shared_encoding, sum_partials
from ._refine_forward import refine_chunk
from .attend import attend_backward, attend_forward
from .refine import (
    Attended,
    Gradients,
    Inputs,
    encoding_gradient,
    in_one_block,
    options,
    prepared,
    refine_backward,
    refine_forward,
    rows_gradient,
    split,
    total_gradient,
)


def _fused(kernel: str, inputs: Inputs, query: Tensor, num_heads: int) -> dict[str, Any] | None:
    """Options of the fused kernel, or None where two passes must do."""
    if query.shape[1] > configs.BLOCK_J_LIMIT:
        return None
    return options(kernel, inputs, num_heads)


def refine_attend_forward(inputs: Inputs, query: Tensor, num_heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``refine_forward``, then ``attend_forward`` of query [G * B, J', C] on its result.

    Returns:
        refined pixels [G * B, N, C] in their dtype; context [G * B, J', C] and log-sum-exp [G * B, J'], float32.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("refine_attend", inputs)
    blocks = _fused("refine_attend", inputs, query, num_heads)
    if blocks is None:
        refined = refine_forward(inputs, num_heads, eps)
        return (refined, *attend_forward(refined, _repeated_encoding(inputs), query))
    x, _, key, key_bias, value, *vectors = inputs
    pe, pe_shared = shared_encoding(inputs.pixel_pe)
    (images, num_pixels, channels), (count, queries, _) = x.shape, query.shape
    chunks, tiles_per_chunk = split(inputs, blocks, count)
    scratch: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    part_context = torch.empty(count, chunks, queries, channels, **scratch)
    part_max = torch.empty(count, chunks, queries, **scratch)
    part_sum = torch.empty(count, chunks, queries, **scratch)
    refined = x.new_empty(count, num_pixels, channels)
    with on_device(x.device):
        refine_chunk[(count * chunks,)](
            x, pe, key, key_bias, value, *vectors, query.contiguous(), refined, part_context, part_max, part_sum,
            images, inputs.dictionaries, num_pixels, num_heads, key.shape[1] // num_heads, queries,
            chunks, tiles_per_chunk, eps,
            PE_SHARED=pe_shared, ATTEND=True, ONE_BLOCK=in_one_block(blocks, num_heads),
            BLOCK_Q=max(16, configs.power_of_two(queries)), **blocks,
        )  # fmt: skip
        return (refined, *merge_context(part_context, part_max, part_sum))


def refine_attend_backward(
    inputs: Inputs,
    query: Tensor,
    context: Tensor,
    lse: Tensor,
    grad_refined: Tensor,
    grad_context: Tensor,
    grad_lse: Tensor,
    num_heads: int,
    eps: float,
    need_pe_grad: bool,
) -> tuple[Gradients, Tensor]:
    """Gradients of ``refine_attend_forward``.

    Args:
        inputs, query, num_heads, eps: what the forward pass was given; context, lse: what it returned.
        grad_refined, grad_context, grad_lse: gradients of its results, [G * B, N, C], [G * B, J', C], [G * B, J'].
        need_pe_grad: whether the encoding's gradient is wanted.

    Returns:
        gradients of the inputs, and of the query.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("refine_attend", inputs)
    blocks = _fused("refine_attend_grad_total", inputs, query, num_heads)
    if blocks is None:
        return _two_passes(
            inputs, query, context, lse, grad_refined, grad_context, grad_lse, num_heads, eps, need_pe_grad
        )
    grad = grad_context.to(query.dtype).contiguous()
    # From the rounded gradient, as the kernels use it: the rows of dS then still sum to grad_lse.
    delta = (grad.float() * context).sum(-1) - grad_lse.float()
    attended = Attended(query.contiguous(), lse.float().contiguous(), grad, delta)
    grad_pe = encoding_gradient(inputs) if need_pe_grad else None
    grad_total, vectors, grad_query = total_gradient(
        inputs, grad_refined, grad_pe, attended, num_heads, eps, blocks
    )  # fmt: skip
    assert grad_query is not None
    return rows_gradient(inputs, grad_total, grad_pe, vectors, num_heads, add_pe=need_pe_grad), grad_query


def _repeated_encoding(inputs: Inputs) -> Tensor:
    """The encoding for the refined pixels of all dictionaries; one of every image's own is copied for each."""
    pe = inputs.pixel_pe
    return pe if pe.dim() == 2 or inputs.dictionaries == 1 else pe.repeat(inputs.dictionaries, 1, 1)


def _two_passes(
    inputs: Inputs,
    query: Tensor,
    context: Tensor,
    lse: Tensor,
    grad_refined: Tensor,
    grad_context: Tensor,
    grad_lse: Tensor,
    num_heads: int,
    eps: float,
    need_pe_grad: bool,
) -> tuple[Gradients, Tensor]:
    refined = refine_forward(inputs, num_heads, eps)
    through_attend, grad_pe, grad_query = attend_backward(
        refined, _repeated_encoding(inputs), query, context, lse, grad_context, grad_lse, need_pe_grad
    )
    if grad_pe is not None and grad_pe.shape != inputs.pixel_pe.shape:
        grad_pe = sum_partials(grad_pe, grad_pe.dtype, 1, inputs.dictionaries).view(inputs.pixel_pe.shape)
    gradients = refine_backward(inputs, grad_refined + through_attend, num_heads, eps, need_pe_grad)
    if grad_pe is not None and gradients.pixel_pe is not None:
        gradients = gradients._replace(pixel_pe=gradients.pixel_pe + grad_pe)
    return gradients, grad_query
