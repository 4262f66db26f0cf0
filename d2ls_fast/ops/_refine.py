"""refine and refine_attend backwards in plain PyTorch: one function for both, as the kernels have it."""

from __future__ import annotations

import torch
from torch import Tensor

from d2ls_fast.ops.attend import attend_gradients
from d2ls_fast.ops.refine import repeated


def plain_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query: Tensor | None,
    context: Tensor | None,
    log_sum_exp: Tensor | None,
    grad_refined: Tensor,
    grad_context: Tensor | None,
    grad_log_sum_exp: Tensor | None,
    num_heads: int,
    eps: float,
    need_pe_grad: bool,
) -> tuple[Tensor, ...]:
    """The backward formulas in PyTorch, for machines without the compiled extension; recomputes the forward.

    With A, u, x' as in the forward: first attend's gradient joins that of x', then LayerNorm, softmax and the product
    with the key are undone. Without a query this is the backward of refine.
    """
    dtype, dictionaries = key_bias.dtype, key.shape[0] // pixels.shape[0]
    pixels, encoding = repeated(pixels, key), repeated(pixel_pe, key)
    x, y, kappa, nu = pixels.to(dtype), (pixels + encoding).to(dtype), key.to(dtype), value.to(dtype)
    scores = y @ kappa.transpose(-1, -2) + key_bias.unsqueeze(1)
    weights = scores.unflatten(-1, (num_heads, -1)).softmax(-1).flatten(2)
    total = x + weights @ nu + out_bias
    inverse_sigma = torch.rsqrt(total.var(-1, correction=0, keepdim=True) + eps)
    normal = (total - total.mean(-1, keepdim=True)) * inverse_sigma
    grad, through_pe = grad_refined.to(dtype), torch.zeros_like(x)
    grad_query = pixels.new_empty((0,))
    if query is not None and context is not None and log_sum_exp is not None:
        assert grad_context is not None and grad_log_sum_exp is not None
        refined = (normal * norm_weight + norm_bias).to(pixels.dtype)
        through_values, through_pe, grad_query = attend_gradients(
            refined, encoding, query, context, log_sum_exp, grad_context, grad_log_sum_exp
        )
        grad = grad + through_pe + through_values
        grad_query = grad_query.to(query.dtype)
    grad_norm_weight, grad_norm_bias = (grad * normal).sum((0, 1)), grad.sum((0, 1))
    scaled = grad * norm_weight
    grad = inverse_sigma * (scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True))
    grad_weights = (grad @ nu.transpose(-1, -2)).unflatten(-1, (num_heads, -1))
    by_head = weights.unflatten(-1, (num_heads, -1))
    grad_scores = (by_head * (grad_weights - (by_head * grad_weights).sum(-1, keepdim=True))).flatten(2)
    through_key = grad_scores @ kappa
    grad_pixels, through_pe = (
        t.unflatten(0, (dictionaries, -1)).sum(0) for t in (grad + through_key, through_pe + through_key)
    )
    if not need_pe_grad:
        grad_pe = pixel_pe.new_empty((0,))
    else:
        grad_pe = (through_pe if pixel_pe.dim() == 3 else through_pe.sum(0)).to(pixel_pe.dtype)
    return (
        grad_pixels.to(pixels.dtype),
        grad_pe,
        (grad_scores.transpose(-1, -2) @ y).to(key.dtype),
        grad_scores.sum(1),
        (weights.transpose(-1, -2) @ grad).to(value.dtype),
        grad.sum((0, 1)),
        grad_norm_weight,
        grad_norm_bias,
        grad_query,
    )
